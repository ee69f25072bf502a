"""Arrivals: when which policy is asked, and with what sizes. One seed gives the same arrivals to all who are raced."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from load.workloads.crowd import Crowd
from load.workloads.trace_files import TraceFiles, find_traces

PROMPT_TOKENS = (64, 128)
OUTPUT_TOKENS = (8, 16)

# Without the trace's files: gamma gaps of its CV.
_BURST_CV = 13.2

_SLACK = 1.5
"""Streams are drawn for so many times the expected span: what comes by chance must not end them early."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to make: `at_s` seconds after the start. The seed gives its random prompt."""

    at_s: float
    policy: int
    prompt_tokens: int
    output_tokens: int
    seed: int

    def prompt(self, vocabulary: int) -> list[int]:
        """Random token ids: no prefix is shared with any other request. The first 100 ids are special in most bases."""
        random = np.random.default_rng(self.seed)
        return random.integers(100, vocabulary, size=self.prompt_tokens).tolist()


def client_arrivals(crowd: Crowd, count: int, rate_rps: float, random: np.random.Generator) -> list[Arrival]:
    """Each policy's own gamma stream, merged; scaled so that `count` requests arrive at `rate_rps` on average."""
    span = float(count)
    while True:
        times, policies = _merged_streams(crowd, span, random)
        if len(times) >= count:
            times = times[:count] * (count / rate_rps / times[count - 1])
            return _sized(times, policies[:count], random)
        span *= _SLACK


def burst_arrivals(
    crowd: Crowd, count: int, rate_rps: float, random: np.random.Generator, traces: TraceFiles | None = None
) -> list[Arrival]:
    """A stretch of the code-completion trace (inter-arrival CV 13) at `rate_rps`; each request is for a policy of its
    own drawing, so that a burst is of many policies at once."""
    found = traces or find_traces()
    if found is None:
        shape = 1 / _BURST_CV**2
        gaps = random.gamma(shape, 1 / shape, count)
    else:
        whole = found.burst_gaps_s()
        if count > len(whole):
            raise ValueError(f"the trace has {len(whole)} requests, not {count}")
        start = int(random.integers(len(whole) - count + 1))
        gaps = whole[start : start + count]
    times = np.cumsum(gaps)
    policies = random.choice(len(crowd), size=count, p=crowd.weights)
    return _sized(times * (count / rate_rps / times[-1]), policies, random)


def _merged_streams(
    crowd: Crowd, span: float, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Streams in equilibrium over [0, span), one request per unit of time expected of all together."""
    times: list[float] = []
    policies: list[int] = []
    for policy, (weight, cv) in enumerate(zip(crowd.weights.tolist(), crowd.cvs.tolist(), strict=True)):
        for at in _stream(1 / weight, cv, span, random):
            times.append(at)
            policies.append(policy)
    order = np.argsort(times, kind="stable")
    return np.array(times)[order], np.array(policies)[order]


def _stream(mean_gap: float, cv: float, span: float, random: np.random.Generator) -> Iterator[float]:
    """Times of one gamma renewal process. The gap that covers the start is longer than others by its own length, and
    the start lies anywhere in it: without that, every bursty stream would begin with a burst."""
    shape = 1 / cv**2
    scale = mean_gap / shape
    at = random.random() * random.gamma(shape + 1, scale)
    while at < span:
        yield at
        at += random.gamma(shape, scale)


def _sized(times: NDArray[np.float64], policies: NDArray[np.int64], random: np.random.Generator) -> list[Arrival]:
    count = len(times)
    prompts = random.integers(PROMPT_TOKENS[0], PROMPT_TOKENS[1], size=count, endpoint=True)
    outputs = random.integers(OUTPUT_TOKENS[0], OUTPUT_TOKENS[1], size=count, endpoint=True)
    seeds = random.integers(2**62, size=count)
    columns = (times.tolist(), policies.tolist(), prompts.tolist(), outputs.tolist(), seeds.tolist())
    return [Arrival(*row) for row in zip(*columns, strict=True)]
