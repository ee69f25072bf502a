"""A crowd of policies: how popular and how bursty each is."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from load.workloads.trace_files import TraceFiles, find_traces

MAX_CV = 10.0
"""Beyond it, one client's burst would be the whole of a window of a minute."""

MIN_CV = 0.3
"""Below it, a client is a clock; gamma arrivals of a smaller CV cost time and change nothing."""

# Published of ServeGen's clients: the spread of rates, and quantiles of the CV.
_RATE_LN_SD = 2.15
_CV_QUANTILES = ((0.0, 0.5), (0.1, 1.0), (0.5, 2.1), (0.9, 9.0), (1.0, 10.0))


@dataclass(frozen=True, slots=True)
class Crowd:
    """Policies by number. `weights` sum to 1 and are the expected shares of requests; `cvs` are of inter-arrivals."""

    weights: NDArray[np.float64]
    cvs: NDArray[np.float64]
    source: Literal["traces", "published parameters"]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def hottest(self) -> list[int]:
        """The policies, most asked for first."""
        return [int(index) for index in np.argsort(-self.weights, kind="stable")]


def draw_crowd(policies: int, random: np.random.Generator, traces: TraceFiles | None = None) -> Crowd:
    """Clients drawn with replacement, one per policy: rate over its pool's mean, CV capped.

    Without the trace's files (`traces` or those of `find_traces`), rates are lognormal and CVs follow the quantiles
    that are published of the same clients.
    """
    found = traces or find_traces()
    if found is None:
        rates = random.lognormal(0.0, _RATE_LN_SD, policies)
        at, values = zip(*_CV_QUANTILES, strict=True)
        cvs = np.interp(random.random(policies), at, values)
        return Crowd(rates / rates.sum(), cvs, "published parameters")
    clients = found.clients()
    drawn = [clients[index] for index in random.integers(len(clients), size=policies)]
    rates = np.array([client.relative_rate for client in drawn])
    cvs = np.clip([client.cv for client in drawn], MIN_CV, MAX_CV)
    return Crowd(rates / rates.sum(), cvs, "traces")
