"""Waves of cold policies, one token each, ours beside stock vLLM: what a load costs the one who waits for it.

One-token answers, so that decoding does not hide loading. Two kinds of cold: `staged`, where the prepared file lies on
the engine's machine as the stock server's adapter folder does, which is what bounds are about; and `stored`, where it
must first be fetched, verified and repacked, which no stock server does and which is reported beside it.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.waves.arena import Arena
    from load.waves.recording import Recorder
    from load.waves.wave import Wave

PAIRS, QUICK_PAIRS = 15, 4
ON_ONE_ENGINE, ON_TWO_ENGINES = 16, 64
"""Distinct policies in a wave. 16 are as many sequences as one engine runs at once."""

LOAD_BOUNDS = {"dense": 0.4, "experts": 0.2}
"""What one more cold load adds, ours over stock."""

COLD_OVER_WARM_ONE_ENGINE = 1.25
COLD_OVER_WARM_TWO_ENGINES = 1.3

Side = Callable[[int], Awaitable[None]]


def run(options: Options, report: ReportBuilder) -> None:
    """One engine with the dense base and with experts, then two engines with the dense base."""
    asyncio.run(_run(options, report))


async def _run(options: Options, report: ReportBuilder) -> None:
    from load.waves.arena import BASES, Arena, dense_base
    from load.waves.recording import Recorder

    pairs = QUICK_PAIRS if options.is_quick else PAIRS
    recorder = Recorder(options.keep, "cold-wave", "Waves of cold policies, one token each")
    for kind, folder_of in BASES.items():
        if options.wants(kind):
            async with Arena(folder_of(), engines=1) as arena:
                await _one_engine(arena, kind, pairs, report, recorder)
    if options.wants("two-engines"):
        async with Arena(dense_base(), engines=2) as arena:
            await _two_engines(arena, pairs if not options.is_quick else 2, report, recorder)
    recorder.close()


@dataclass(frozen=True, slots=True)
class Raced:
    """The waves of every pair: ours cold in the store, ours staged, stock."""

    stored: list["Wave"]
    staged: list["Wave"]
    stock: list["Wave"]

    @property
    def unanswered(self) -> float:
        """Requests of ours that got no answer."""
        return float(sum(wave.faults for wave in (*self.stored, *self.staged)))


async def _race(arena: "Arena", label: str, policies_each: int, pairs: int, recorder: "Recorder") -> Raced:
    from load.waves.wave import cold_then_warm

    raced = Raced([], [], [])

    async def ours(number: int) -> None:
        policies = await arena.fresh_policies(policies_each)
        raced.stored.append(await cold_then_warm(arena.ours, policies, 100 + number))
        await arena.ours.clear(policies, keep_staged=True)
        raced.staged.append(await cold_then_warm(arena.ours, policies, 200 + number))
        await arena.ours.clear(policies)

    async def theirs(number: int) -> None:
        policies = await arena.fresh_policies(policies_each)
        raced.stock.append(await cold_then_warm(arena.routed, policies, 300 + number))

    await _warm_up(arena)
    variants = (("openmint", raced.stored), ("openmint, staged", raced.staged), ("stock", raced.stock))
    for number in range(pairs):
        await _alternating(number, ours, theirs)
        for variant, waves in variants:
            recorder.requests(waves[-1].cold, f"{label}: {variant}", number, is_cold=True)
            recorder.requests(waves[-1].warm, f"{label}: {variant}", number, is_cold=False)
    return raced


async def _one_engine(arena: "Arena", kind: str, pairs: int, report: ReportBuilder, recorder: "Recorder") -> None:
    raced = await _race(arena, kind, ON_ONE_ENGINE, pairs, recorder)
    where = f"{kind}, {ON_ONE_ENGINE} on one engine"
    _tell(f"{where}, stock", raced.stock, report)
    stock_ms = statistics.median(wave.load_ms for wave in raced.stock)
    _tell(f"{where}, stored", raced.stored, report)
    _tell(f"{where}, staged", raced.staged, report)
    ours_ms = statistics.median(wave.load_ms for wave in raced.staged)
    report.check_at_most(
        f"{where}, staged: one more load over stock's",
        ours_ms / stock_ms if stock_ms > 0 else None,
        LOAD_BOUNDS[kind],
        f"{ours_ms:.2f} against {stock_ms:.2f} ms",
    )
    report.check_at_most(
        f"{where}, staged: cold over warm p95", _cold_over_warm(raced.staged), COLD_OVER_WARM_ONE_ENGINE
    )
    report.note(f"{where}, stock: cold over warm p95 is {_cold_over_warm(raced.stock):.3f}")
    report.check_at_most(f"{where}: not answered", raced.unanswered, 0)


async def _two_engines(arena: "Arena", pairs: int, report: ReportBuilder, recorder: "Recorder") -> None:
    raced = await _race(arena, "two engines", ON_TWO_ENGINES, pairs, recorder)
    where = f"dense, {ON_TWO_ENGINES} on two engines"
    _tell(f"{where}, stored", raced.stored, report)
    _tell(f"{where}, staged", raced.staged, report)
    _tell(f"{where}, stock", raced.stock, report)
    report.check_at_most(
        f"{where}, staged: cold over warm p95", _cold_over_warm(raced.staged), COLD_OVER_WARM_TWO_ENGINES
    )
    against = statistics.median(a.cold_p95_s / b.cold_p95_s for a, b in zip(raced.staged, raced.stock, strict=True))
    report.check_at_most(f"{where}, staged: cold p95 over stock's", against, 1.0)
    report.check_at_most(f"{where}: not answered", raced.unanswered, 0)


def _cold_over_warm(waves: "list[Wave]") -> float:
    return statistics.median(wave.cold_p95_s / wave.warm_p95_s for wave in waves)


async def _warm_up(arena: "Arena") -> None:
    """The first requests of a process pay for imports and caches: nobody's load."""
    from load.waves.wave import cold_then_warm

    policies = await arena.fresh_policies(4)
    for target in (arena.ours, arena.routed):
        await cold_then_warm(target, policies, -1)
    await arena.ours.clear()


async def _alternating(number: int, ours: Side, theirs: Side) -> None:
    for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
        await side(number)


def _tell(where: str, waves: "list[Wave]", report: ReportBuilder) -> None:
    report.measure(f"{where}: cold p95", "s", [wave.cold_p95_s for wave in waves])
    report.measure(f"{where}: warm p95", "s", [wave.warm_p95_s for wave in waves])
    report.measure(f"{where}: one more load", "ms", [wave.load_ms for wave in waves])


COLD_WAVE = Scenario("cold-wave", "distinct cold policies at once, one token each, beside stock vLLM", run)
