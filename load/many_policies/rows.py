"""One row: one contender under one load with one seed. Finished rows are kept, so that a long run can go on."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_COLUMNS = (
    ("load", "load"),
    ("contender", "contender"),
    ("seed", "seed"),
    ("refused %", "refused_percent"),
    ("TTFT p50", "ttft_p50_s"),
    ("p95", "ttft_p95_s"),
    ("p99 s", "ttft_p99_s"),
    ("goodput 5 s", "goodput_5_rps"),
    ("10 s", "goodput_10_rps"),
    ("req/s", "requests_rps"),
    ("tok/s", "tokens_rps"),
    ("loads /1000", "loads_per_1000"),
    ("swaps /1000", "slot_swaps_per_1000"),
    ("adapters answered", "distinct_answered"),
    ("asked", "distinct_asked"),
    ("errors", "errors"),
)


class Row(BaseModel):
    """Figures of one row. Rates are per second of the window; TTFT counts from when the request was due."""

    model_config = ConfigDict(frozen=True)

    base: str
    load: str
    contender: str
    seed: int
    offered: int
    answered: int
    refused_percent: float
    errors: int
    first_error: str
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    goodput_5_rps: float
    goodput_10_rps: float
    requests_rps: float
    tokens_rps: float
    loads_per_1000: float
    slot_swaps_per_1000: float
    distinct_answered: int
    distinct_asked: int
    refusal_p95_s: float
    cpu_cores: dict[str, float]
    """Cores used on average by each part while the row ran."""
    load_average: float

    def line(self) -> str:
        """The row for reading while a run goes on."""
        cores = " ".join(f"{name} {used:.2f}" for name, used in self.cpu_cores.items())
        return (
            f"{self.key}: {self.offered} asked, {self.refused_percent:.1f} % refused, {self.errors} errors, "
            f"TTFT {self.ttft_p50_s:.1f} / {self.ttft_p95_s:.1f} / {self.ttft_p99_s:.1f} s, "
            f"goodput {self.goodput_5_rps:.1f} / {self.goodput_10_rps:.1f}, {self.requests_rps:.1f} req/s, "
            f"{self.tokens_rps:.0f} tok/s, {self.loads_per_1000:.0f} loads and {self.slot_swaps_per_1000:.0f} swaps "
            f"per 1,000, {self.distinct_answered} of {self.distinct_asked} adapters; cores: {cores}"
            + (f"; first error: {self.first_error}" if self.first_error else "")
        )

    @property
    def is_ours(self) -> bool:
        """Ours, whole or with a part switched off."""
        return self.contender.startswith("ours")

    @property
    def is_capped(self) -> bool:
        """A peer with a cap."""
        return "+cap" in self.contender

    @property
    def key(self) -> str:
        """`base/load/contender/seed`."""
        return row_key(self.base, self.load, self.contender, self.seed)


def row_key(base: str, load: str, contender: str, seed: int) -> str:
    """The name that a row is kept, chosen and found by."""
    return f"{base}/{load}/{contender}/seed{seed}"


class _Kept(BaseModel):
    capacity_rps: dict[str, float] = {}
    rows: list[Row] = []


class RowBook:
    """Rows by key, and each base's measured capacity. With a file, every addition is written at once."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        kept = _Kept.model_validate_json(path.read_bytes()) if path is not None and path.exists() else _Kept()
        self.capacity_rps = kept.capacity_rps
        self._rows = {row.key: row for row in kept.rows}

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def find(self, base: str, load: str, contender: str, seed: int) -> Row | None:
        """The row, when it was run."""
        return self._rows.get(row_key(base, load, contender, seed))

    def add(self, row: Row) -> None:
        """Keep a finished row; one of the same key is replaced."""
        self._rows[row.key] = row
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        fresh = self._path.with_suffix(".writing")
        kept = _Kept(capacity_rps=self.capacity_rps, rows=self.rows())
        fresh.write_text(kept.model_dump_json(indent=1))
        fresh.replace(self._path)

    def rows(self, base: str | None = None, load: str | None = None, contender: str | None = None) -> list[Row]:
        """The rows that match, in the order in which they were run."""
        return [
            row
            for row in self._rows.values()
            if base in (None, row.base) and load in (None, row.load) and contender in (None, row.contender)
        ]


def markdown(rows: Iterable[Row]) -> str:
    """The rows as one table per base."""
    lines: list[str] = []
    by_base: dict[str, list[Row]] = {}
    for row in rows:
        by_base.setdefault(row.base, []).append(row)
    for base, group in by_base.items():
        names = [name for name, _ in _COLUMNS]
        lines += [f"{base}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in group] + [""]
    return "\n".join(lines)


def comma_separated(rows: Iterable[Row]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["base", *(field for _, field in _COLUMNS)])
    writer.writerows([row.base, *_cells(row)] for row in rows)
    return text.getvalue()


def _cells(row: Row) -> list[str]:
    values = [getattr(row, field) for _, field in _COLUMNS]
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
