"""Catalogues of a thousand, ten thousand and a hundred thousand adapters on one engine: does size cost latency?

All adapters are real and lie in catalogue and store; they are tiny, so that bytes are not what is measured. Each
sample is one policy that was never asked for: its first answer is cold, its second warm.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.clients.records import Outcome
    from load.stack.openmint_stack import OpenmintStack
    from load.stack.policies import Policy

SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (1_000, 10_000)
SAMPLES = 64
ROUNDS = 3
"""Of so many samples each, the median of whose p95 speaks: one p95 of 64 is the fourth-worst of them."""

FLAT = 1.2
PROMPT_TOKENS = 16
WARM_UP = 40
"""Policies asked for before the samples of a size: the engine is full, so that every cold load evicts."""


@dataclass(slots=True)
class OfSize:
    """Answers with one size of catalogue, in seconds to the first token, a tuple per round."""

    cold_s: list[tuple[float, ...]] = field(default_factory=list)
    warm_s: list[tuple[float, ...]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    first_error: str = ""


def run(options: Options, report: ReportBuilder) -> None:
    """One stack whose catalogue grows; samples at each size."""
    from load.waves.arena import dense_base

    folder = dense_base()
    sizes = QUICK_SIZES if options.is_quick else SIZES
    tell(asyncio.run(_sweep(folder, sizes, 1 if options.is_quick else ROUNDS, options.seed)), report)


async def _sweep(base_folder: Path, sizes: Sequence[int], rounds: int, seed: int) -> dict[int, OfSize]:
    from load.stack.engine_limits import EngineLimits
    from load.stack.openmint_stack import OpenmintStack
    from load.stack.policies import make_policies

    drawing = random.Random(seed)
    everyone = make_policies(sizes[-1])
    found: dict[int, OfSize] = {}
    asked: set[Policy] = set()
    async with OpenmintStack(base_folder, 1, EngineLimits()) as stack:
        stack.open_shelf(tiny=True)
        before = 0
        for size in sizes:
            await stack.seed(everyone[before:size])
            before = size
            await stack.until_idle()
            found[size] = OfSize()
            for number in range(rounds + 1):
                count = SAMPLES if number else WARM_UP
                policies = drawing.sample([policy for policy in everyone[:size] if policy not in asked], count)
                asked.update(policies)
                await _round(stack, policies, drawing, found[size] if number else OfSize())
    return found


async def _round(stack: "OpenmintStack", policies: "Sequence[Policy]", drawing: random.Random, into: OfSize) -> None:
    from load.clients.records import Call

    cold_s: list[float] = []
    warm_s: list[float] = []
    answered = 0
    for policy in policies:
        both = []
        for _ in range(2):
            prompt = tuple(drawing.randrange(100, 40_000) for _ in range(PROMPT_TOKENS))
            both.append(await stack.ask(Call(policy, prompt, 1)))
        cold, warm = both
        answered += cold.is_answered and warm.is_answered
        into.first_error = into.first_error or cold.error or warm.error
        cold_s.append(_ttft(cold))
        warm_s.append(_ttft(warm))
    into.cold_s.append(tuple(cold_s))
    into.warm_s.append(tuple(warm_s))
    into.answered.append(answered)


def _ttft(outcome: "Outcome") -> float:
    return outcome.ttft_s if outcome.is_answered and outcome.ttft_s is not None else float("inf")


def tell(found: dict[int, OfSize], report: ReportBuilder) -> None:
    """What was found, into the report."""
    from load.clients.figures import percentile

    p95s: dict[str, dict[int, float]] = {"cold": {}, "warm": {}}
    for size, of_size in found.items():
        for kind, rounds in (("cold", of_size.cold_s), ("warm", of_size.warm_s)):
            report.measure(f"{kind}, {size:,} adapters: each", "ms", [1e3 * one for row in rounds for one in row])
            p95 = report.measure(f"{kind}, {size:,} adapters: p95", "ms", [1e3 * percentile(r, 0.95) for r in rounds])
            p95s[kind][size] = p95.median
        report.check_at_least(
            f"{size:,} adapters: answered of {SAMPLES}", min(of_size.answered), SAMPLES, of_size.first_error
        )
    smallest = min(found)
    for kind, by_size in p95s.items():
        for size in sorted(by_size)[1:]:
            name = f"{kind} p95, {size:,} over {smallest:,} adapters"
            report.check_at_most(name, by_size[size] / by_size[smallest], FLAT)
    report.note("one user who asks for one policy after the other; one token a request")


SWEEP = Scenario("sweep", "catalogues of 10^3, 10^4 and 10^5 adapters on one engine: cold and warm latency", run)
