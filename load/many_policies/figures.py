"""From outcomes to the figures of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

from load.clients.figures import percentile, ttfts
from load.clients.records import Outcome

BOUNDS_S = (5.0, 10.0)
"""Longest waits for a first token that count as good. Fixed before the first run."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What clients saw. Rates are per second of the window, and of its drain where that is longer."""

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
    distinct_answered: int
    distinct_asked: int
    refusal_p95_s: float


def figures_of(outcomes: Sequence[Outcome], started_s: float, window_s: float, *, is_closed: bool) -> Figures:
    """Open loop: whatever arrived in the window is followed to its end, and throughput counts the drain as well.
    Closed loop: what had its last token within the window counts, the rest only as asked."""
    end_s = started_s + window_s
    answered = [one for one in outcomes if one.is_answered]
    refused = [one for one in outcomes if one.is_refused]
    failed = [one for one in outcomes if one.is_fault]
    if is_closed:
        counted, span_s = [one for one in answered if one.ended_s <= end_s], window_s
    else:
        counted, span_s = answered, max([window_s, *(one.ended_s - started_s for one in answered)])
    waits = ttfts(counted)
    five, ten = (sum(wait <= bound for wait in waits) / window_s for bound in BOUNDS_S)
    return Figures(
        offered=len(outcomes),
        answered=len(answered),
        refused_percent=100 * len(refused) / max(1, len(outcomes)),
        errors=len(failed),
        first_error=next((f"{one.status}: {one.error}"[:300] for one in failed), ""),
        ttft_p50_s=percentile(waits, 0.50),
        ttft_p95_s=percentile(waits, 0.95),
        ttft_p99_s=percentile(waits, 0.99),
        goodput_5_rps=five,
        goodput_10_rps=ten,
        requests_rps=len(counted) / span_s,
        tokens_rps=sum(one.tokens for one in counted) / span_s,
        distinct_answered=len({one.call.policy for one in counted}),
        distinct_asked=len({one.call.policy for one in outcomes}),
        refusal_p95_s=percentile((one.ended_s - one.sent_s for one in refused), 0.95),
    )
