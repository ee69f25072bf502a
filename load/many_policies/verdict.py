"""What the rows have to show: ours beside its peers, with bounds that were fixed before the first run."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from load.many_policies.plan import CLOSED, HEAVY, LIGHT, OURS, Extent, Load
from load.many_policies.rows import Row, RowBook
from load.report import ReportBuilder

Figure = Callable[[Row], float]
Pick = Callable[[Sequence[Row]], Row | None]


_p99: Figure = attrgetter("ttft_p99_s")
_five: Figure = attrgetter("goodput_5_rps")
_ten: Figure = attrgetter("goodput_10_rps")
_throughput: Figure = attrgetter("requests_rps")
_loads: Figure = attrgetter("loads_per_1000")
_refused: Figure = attrgetter("refused_percent")
_distinct: Figure = attrgetter("distinct_answered")


def peer(name: str) -> Pick:
    """The peer of that name."""
    return lambda peers: next((row for row in peers if row.contender == name), None)


def best(figure: Figure, *, capped: bool) -> Pick:
    """The peer with the largest figure; with `capped`, of those with a cap alone."""

    def pick(peers: Sequence[Row]) -> Row | None:
        allowed = [row for row in peers if row.is_capped or not capped]
        return max(allowed, key=figure, default=None)

    return pick


@dataclass(frozen=True, slots=True)
class Bound:
    """Ours over a peer, in one figure; the median over the seeds must keep the limit."""

    load: Load
    what: str
    figure: Figure
    against: Pick
    relation: Literal["<=", ">="]
    limit: float


DENSE: tuple[Bound, ...] = (
    Bound(LIGHT, "p99 / round-robin's", _p99, peer("round-robin"), "<=", 0.5),
    Bound(LIGHT, "p99 / prefer-loaded's", _p99, peer("loaded"), "<=", 0.8),
    Bound(LIGHT, "loads / prefer-loaded's", _loads, peer("loaded"), "<=", 1.0),
    Bound(HEAVY, "loads / round-robin's", _loads, peer("round-robin"), "<=", 0.6),
    Bound(HEAVY, "goodput 5 s / best capped peer's", _five, best(_five, capped=True), ">=", 2.0),
    Bound(HEAVY, "goodput 10 s / best capped peer's", _ten, best(_ten, capped=True), ">=", 1.25),
    Bound(HEAVY, "refused / best capped peer's at 5 s", _refused, best(_five, capped=True), "<=", 1.0),
    Bound(HEAVY, "refused / best capped peer's at 10 s", _refused, best(_ten, capped=True), "<=", 1.0),
    Bound(CLOSED, "goodput 5 s / best capped peer's", _five, best(_five, capped=True), ">=", 1.3),
    Bound(CLOSED, "goodput 10 s / best capped peer's", _ten, best(_ten, capped=True), ">=", 1.3),
    Bound(CLOSED, "adapters answered / those of the best at 5 s", _distinct, best(_five, capped=True), ">=", 1.0),
    Bound(CLOSED, "adapters answered / those of the best at 10 s", _distinct, best(_ten, capped=True), ">=", 1.0),
    Bound(CLOSED, "answers a second / best peer's", _throughput, best(_throughput, capped=False), ">=", 1.15),
)

EXPERTS: tuple[Bound, ...] = (
    Bound(HEAVY, "goodput 5 s / best peer's", _five, best(_five, capped=False), ">=", 2.0),
    Bound(HEAVY, "goodput 10 s / best peer's", _ten, best(_ten, capped=False), ">=", 2.0),
    Bound(HEAVY, "p99 / that of the best at 5 s", _p99, best(_five, capped=False), "<=", 0.5),
    Bound(HEAVY, "p99 / that of the best at 10 s", _p99, best(_ten, capped=False), "<=", 0.5),
)


def judge(book: RowBook, base: str, bounds: Sequence[Bound], wanted: Extent, report: ReportBuilder) -> None:
    """All rows of a base into the report, and its bounds. A bound whose rows are missing does not hold."""
    groups: dict[str, list[Row]] = {}
    for row in book.rows(base=base):
        groups.setdefault(f"{base}, {row.load}, {row.contender}", []).append(row)
    for name, rows in groups.items():
        report.measure(f"{name}: TTFT p99", "s", [row.ttft_p99_s for row in rows])
        report.measure(f"{name}: goodput 5 s", "req/s", [row.goodput_5_rps for row in rows])
        report.measure(f"{name}: goodput 10 s", "req/s", [row.goodput_10_rps for row in rows])
    ours = [row for row in book.rows(base=base) if row.is_ours]
    first = next((row.first_error for row in ours if row.errors), "")
    report.check_at_most(f"{base}: errors of ours", sum(row.errors for row in ours) if ours else None, 0, first)
    if LIGHT in wanted.loads:
        refused = [row.refused_percent for row in book.rows(base, LIGHT.name, OURS.name)]
        report.check_at_most(f"{base}, {LIGHT.name}: refused", max(refused, default=None), 0, "percent")
    for bound in bounds:
        if bound.load in wanted.loads:
            name = f"{base}, {bound.load.name}: {bound.what}"
            check = report.check_at_most if bound.relation == "<=" else report.check_at_least
            check(name, ratio(book, base, bound, wanted.seeds), bound.limit)


def ratio(book: RowBook, base: str, bound: Bound, seeds: Sequence[int]) -> float | None:
    """The median over the seeds; None when a row is missing with one of them."""
    found: list[float] = []
    for seed in seeds:
        rows = [row for row in book.rows(base, bound.load.name) if row.seed == seed]
        ours = next((row for row in rows if row.contender == OURS.name), None)
        chosen = bound.against([row for row in rows if not row.is_ours])
        if ours is None or chosen is None:
            return None
        mine, theirs = bound.figure(ours), bound.figure(chosen)
        found.append(mine / theirs if theirs else float("inf") if mine else 1.0)
    return statistics.median(found)
