"""Two hundred requests in one moment for one cold policy: one stage and one attach on each engine that was chosen."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.clients.records import Outcome
    from load.stack.counters import EngineCounters
    from load.waves.arena import Arena

REQUESTS = 200
ROUNDS, QUICK_ROUNDS = 10, 3
SETTLE_S = 1.5
"""A load that should not have been is made within a second of the others, if at all."""


@dataclass(frozen=True, slots=True)
class Round:
    """One policy's round: what its requests saw, and what each engine did for it."""

    outcomes: "tuple[Outcome, ...]"
    done: "dict[str, EngineCounters]"

    @property
    def chosen(self) -> int:
        """Engines that did anything for it."""
        return sum(1 for counters in self.done.values() if counters.stages or counters.attaches)

    @property
    def most_stages(self) -> int:
        """On one engine."""
        return max(counters.stages for counters in self.done.values())

    @property
    def most_attaches(self) -> int:
        """On one engine."""
        return max(counters.attaches for counters in self.done.values())

    @property
    def unanswered(self) -> int:
        """Requests without a whole answer of the right revision."""
        return sum(not outcome.is_answered for outcome in self.outcomes)


def run(options: Options, report: ReportBuilder) -> None:
    """Rounds with a fresh policy each, on two engines."""
    rounds = asyncio.run(_run(QUICK_ROUNDS if options.is_quick else ROUNDS))
    judge(rounds, report)


async def _run(count: int) -> list[Round]:
    from load.clients.drivers import at_once
    from load.clients.records import Call
    from load.waves.arena import Arena, dense_base

    # All are one tenant's, and none may be refused for that.
    env = {"OPENMINT_WAITING_PER_TENANT": str(2 * REQUESTS)}
    found: list[Round] = []
    async with Arena(dense_base(), engines=2, env=env, with_stock=False) as arena:
        await _warm_up(arena)
        for number in range(count):
            (policy,) = await arena.fresh_policies(1)
            before = await arena.ours.counters()
            calls = [Call(policy, f"Round {number}, request {each}: the sky is", 1) for each in range(REQUESTS)]
            outcomes = await at_once(arena.ours, calls)
            await asyncio.sleep(SETTLE_S)
            after = await arena.ours.counters()
            found.append(Round(tuple(outcomes), {name: after[name] - before[name] for name in after}))
    return found


async def _warm_up(arena: "Arena") -> None:
    from load.waves.wave import cold_then_warm

    await cold_then_warm(arena.ours, await arena.fresh_policies(4), -1)
    await arena.ours.clear()


def judge(rounds: list[Round], report: ReportBuilder) -> None:
    """Figures and bounds of rounds that are done."""
    from load.clients.figures import percentile, ttfts

    report.measure("engines chosen", "engines", [float(each.chosen) for each in rounds])
    for share in (0.5, 0.99):
        values = [percentile(ttfts(each.outcomes), share) for each in rounds]
        report.measure(f"{REQUESTS} requests, first token, p{share * 100:.0f}", "s", values)
    report.check_at_least("engines chosen", float(min(each.chosen for each in rounds)), 1)
    report.check_at_most("stages of the policy on one engine", float(max(each.most_stages for each in rounds)), 1)
    report.check_at_most("attaches of the policy on one engine", float(max(each.most_attaches for each in rounds)), 1)
    wrong = [outcome for each in rounds for outcome in each.outcomes if not outcome.is_answered]
    report.check_at_most(
        "requests without an answer of the right revision",
        float(len(wrong)),
        0,
        f"of {REQUESTS * len(rounds)}" + (f"; the first: {wrong[0].error}" if wrong else ""),
    )


ONE_MISSING = Scenario("one-missing", "200 requests at once for one cold policy: one stage, one attach", run)
