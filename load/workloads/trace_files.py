"""The public traces that workloads are drawn from. They lie outside the repository and may be absent.

Sources: ServeGen, arXiv 2505.09999, Apache-2.0; Azure LLM inference trace 2023 (Patel et al., ISCA 2024), CC-BY-4.0.
"""

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SETTING = "OPENMINT_TRACES"

_CLIENTS = "servegen_clients_summary.csv.gz"
_BURST = "azure_llm_2023_code.csv.gz"
_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Client:
    """One tenant's stream in ServeGen: rate over the mean of its pool, and the CV of its inter-arrival times."""

    relative_rate: float
    cv: float


@dataclass(frozen=True, slots=True)
class TraceFiles:
    """A folder with the traces."""

    folder: Path

    def clients(self) -> tuple[Client, ...]:
        """Every client that was ever active."""
        rows = [row for row in _read(self.folder / _CLIENTS) if float(row["mean_rate_rps"]) > 0]
        pools: dict[str, list[float]] = {}
        for row in rows:
            pools.setdefault(row["pool"], []).append(float(row["mean_rate_rps"]))
        means = {pool: sum(rates) / len(rates) for pool, rates in pools.items()}
        return tuple(
            Client(float(row["mean_rate_rps"]) / means[row["pool"]], float(row["mean_cv_active"])) for row in rows
        )

    def burst_gaps_s(self) -> NDArray[np.float64]:
        """Times between requests of the code-completion trace in seconds, in order; their CV is 13."""
        times = np.array([float(row["t_s"]) for row in _read(self.folder / _BURST)])
        return np.diff(times)


def find_traces() -> TraceFiles | None:
    """The folder that OPENMINT_TRACES names, else one named `traces` beside the checkout, else None.

    Raises: SystemExit when OPENMINT_TRACES names a folder that has not all of the files.
    """
    named = os.environ.get(SETTING)
    if named:
        if not _is_complete(Path(named)):
            raise SystemExit(f"{SETTING} names {named}, where {_CLIENTS} or {_BURST} is missing")
        return TraceFiles(Path(named))
    beside = sorted([*_CHECKOUT.parent.glob("traces"), *_CHECKOUT.parent.glob("*/traces")])
    return next((TraceFiles(folder) for folder in beside if _is_complete(folder)), None)


def _is_complete(folder: Path) -> bool:
    return (folder / _CLIENTS).is_file() and (folder / _BURST).is_file()


def _read(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)
