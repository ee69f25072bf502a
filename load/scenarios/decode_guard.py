"""Running streams while adapters are attached beside them: how much longer a token takes to come.

Windows alternate between quiet and disturbed, and between ours and stock. Disturbances are attaches of adapters whose
files are ready, five a second, without a request for them; and, in a second row, cold requests, five a second.
"""

import asyncio
import statistics
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.stack.policies import Policy
    from load.waves.arena import Arena
    from load.waves.guard import Window
    from load.waves.sides import OurSide, StockSide

ROUNDS, QUICK_ROUNDS = 10, 3
STREAMS = 4
TOKENS = 128
PER_S = 5.0
ATTACHES = 24
"""In one window: with the streams' own they stay below the capacity of 32, so nothing is evicted."""

GAP_BOUNDS = {"dense": 1.15, "experts": 1.6}
"""p99 of the gap between tokens, attaching over quiet."""

NAMES = ("quiet", "attaching", "cold requests")


def run(options: Options, report: ReportBuilder) -> None:
    """The dense base, then the one of experts."""
    asyncio.run(_run(options, report))


async def _run(options: Options, report: ReportBuilder) -> None:
    from load.waves.arena import BASES, Arena

    for kind, folder_of in BASES.items():
        if not options.wants(kind):
            report.note(f"{kind}: not run")
            continue
        async with Arena(folder_of(), engines=1) as arena:
            await _race(arena, kind, QUICK_ROUNDS if options.is_quick else ROUNDS, report)


async def _race(arena: "Arena", kind: str, rounds: int, report: ReportBuilder) -> None:
    from load.waves.sides import OurSide, StockSide

    sides = {"ours": OurSide(arena), "stock": StockSide(arena)}
    windows: dict[str, dict[str, list[Window]]] = {side: {name: [] for name in NAMES} for side in sides}
    streams = await arena.fresh_policies(STREAMS)
    extras = await arena.fresh_policies(ATTACHES)
    for side in sides.values():
        await side.prepare(streams, extras)
    for number in range(rounds):
        for side_name, side in sides.items() if number % 2 == 0 else reversed(sides.items()):
            for name in NAMES:
                windows[side_name][name].append(await _window(arena, side, name, streams, number))
    for side in sides.values():
        await side.close()
    judge(kind, windows, report)


async def _window(
    arena: "Arena", side: "OurSide | StockSide", name: str, streams: "list[Policy]", number: int
) -> "Window":
    from load.waves.guard import run_window

    disturb = None
    if name == "attaching":
        disturb = await side.attaching(number)
    elif name == "cold requests":
        disturb = side.asking(await arena.fresh_policies(ATTACHES))
    window = await run_window(side.target, streams, TOKENS, number, disturb, per_s=PER_S, at_most=ATTACHES)
    await side.settle()
    return window


def judge(kind: str, windows: "dict[str, dict[str, list[Window]]]", report: ReportBuilder) -> None:
    """Figures and bounds of windows that are done."""
    for side, by_name in windows.items():
        for name, found in by_name.items():
            where = f"{kind}, {side}, {name}: gap"
            report.measure(f"{where} p50", "ms", [window.p50_ms for window in found])
            report.measure(f"{where} p99", "ms", [window.p99_ms for window in found])
            report.measure(f"{where} longest", "ms", [window.max_ms for window in found])
    for name in NAMES[1:]:
        for side in windows:
            ratio = statistics.median(
                a.p99_ms / b.p99_ms for a, b in zip(windows[side][name], windows[side]["quiet"], strict=True)
            )
            if side == "ours" and name == "attaching":
                report.check_at_most(f"{kind}: p99 gap, attaching over quiet", ratio, GAP_BOUNDS[kind])
            else:
                report.note(f"{kind}, {side}: p99 gap, {name} over quiet, is {ratio:.3f}")
    attached = [w.disturbances for w in windows["ours"]["attaching"]]
    report.note(f"{kind}: {statistics.mean(attached):.1f} attaches in a window of {STREAMS} streams")
    faults = sum(window.faults for found in windows["ours"].values() for window in found)
    report.check_at_most(f"{kind}: streams that were not answered", float(faults), 0)


DECODE_GUARD = Scenario("decode-guard", "the gap between tokens while adapters are attached beside the streams", run)
