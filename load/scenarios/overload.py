"""Three times what can be answered, for a minute: who is let in keeps the deadline, who is not learns it at once.

Capacity is measured first on the same stack: closed clients, warm adapters, every place of the engine taken.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.clients.records import Call, Outcome
    from load.stack.openmint_stack import OpenmintStack
    from load.workloads.arrivals import Arrival

OVERLOAD = 3.0
WINDOW_S = 60.0
QUICK_WINDOW_S = 30.0
ENGINES = 2
POLICIES = 2048
CALIBRATION_CLIENTS = 36
CALIBRATION_S = 15.0

DEADLINE_S = 10.0
"""The longest wait for a first token that users of this run accept, and that the gateway is told."""

KEPT_SHARE = 0.95
REFUSAL_P95_S, REFUSAL_P99_S = 0.050, 0.250
MEMORY_GROWTH_MIB = 16.0
"""Growth of the gateway between the first third of the window, when its queues are full, and the end."""

SAMPLE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Overloaded:
    """What was seen."""

    capacity_rps: float
    outcomes: "list[Outcome]"
    gateway_mib: tuple[float, ...]
    """Resident memory of the gateway, each second of the window."""

    gateway_cores: float


def run(options: Options, report: ReportBuilder) -> None:
    """One window of overload."""
    from load.waves.arena import dense_base

    folder = dense_base()
    tell(asyncio.run(_overload(folder, options)), report)


async def _overload(base_folder: Path, options: Options) -> Overloaded:
    import numpy as np

    from load.clients.drivers import closed_loop, open_loop
    from load.clients.records import Call
    from load.many_policies.figures import figures_of
    from load.many_policies.processor_use import ProcessorUse
    from load.stack.engine_limits import EngineLimits
    from load.stack.openmint_stack import OpenmintStack
    from load.stack.policies import make_policies
    from load.workloads.arrivals import client_arrivals
    from load.workloads.crowd import Crowd, draw_crowd

    window_s = QUICK_WINDOW_S if options.is_quick else WINDOW_S
    limits, policies = EngineLimits(), make_policies(POLICIES)
    vocabulary = int(json.loads((base_folder / "config.json").read_text())["vocab_size"])
    random = np.random.default_rng(options.seed)

    def calls(arrivals: "Sequence[Arrival]") -> "Iterator[Call]":
        for one in arrivals:
            yield Call(policies[one.policy], tuple(one.prompt(vocabulary)), one.output_tokens)

    env = {"OPENMINT_WAIT_DEADLINE_S": str(DEADLINE_S)}
    async with OpenmintStack(base_folder, ENGINES, limits, env=env) as stack:
        await stack.seed(policies)
        warm = ENGINES * limits.slots
        few = Crowd(np.full(warm, 1 / warm), np.ones(warm), "published parameters")
        stream = calls(client_arrivals(few, 20_000, 1.0, random))
        await closed_loop(stack, CALIBRATION_CLIENTS, stream, CALIBRATION_S / 2)
        started_s = time.monotonic()
        measured = await closed_loop(stack, CALIBRATION_CLIENTS, stream, CALIBRATION_S)
        capacity_rps = figures_of(measured, started_s, CALIBRATION_S, is_closed=True).requests_rps
        rate_rps = OVERLOAD * capacity_rps
        arrivals = client_arrivals(draw_crowd(POLICIES, random), round(rate_rps * window_s), rate_rps, random)
        prepared = list(zip([one.at_s for one in arrivals], calls(arrivals), strict=True))
        await stack.until_idle()
        use = ProcessorUse({"gateway": stack.pid_of("gateway")})
        memory = asyncio.create_task(_watch_memory(stack, window_s))
        outcomes = await open_loop(stack, prepared)
        return Overloaded(capacity_rps, outcomes, await memory, use.cores().get("gateway", 0.0))


async def _watch_memory(stack: "OpenmintStack", window_s: float) -> tuple[float, ...]:
    import psutil

    process = psutil.Process(stack.pid_of("gateway"))
    sizes: list[float] = []
    for _ in range(round(window_s / SAMPLE_EVERY_S)):
        sizes.append(process.memory_info().rss / 2**20)
        await asyncio.sleep(SAMPLE_EVERY_S)
    return tuple(sizes)


def tell(found: Overloaded, report: ReportBuilder) -> None:
    """What was found, into the report."""
    from statistics import median

    from load.clients.figures import percentile, ttfts

    # Whoever was let into the line and told so late is no refusal: a promise was broken.
    refused = [one for one in found.outcomes if one.is_refused and one.status != 200]
    admitted = [one for one in found.outcomes if not one.is_refused or one.status == 200]
    in_time = [one for one in admitted if one.is_answered and one.ttft_s is not None and one.ttft_s <= DEADLINE_S]
    faults = [one for one in found.outcomes if one.is_fault]
    refusals_s = [one.ended_s - one.sent_s for one in refused]
    third = len(found.gateway_mib) // 3
    growth = median(found.gateway_mib[-third:]) - median(found.gateway_mib[third // 2 : third])

    report.measure("capacity, warm", "req/s", [found.capacity_rps])
    report.measure("asked", "requests", [len(found.outcomes)])
    report.measure("refused", "percent", [100 * len(refused) / len(found.outcomes)])
    report.measure("TTFT of what was answered", "s", ttfts(admitted) or [float("nan")])
    report.measure("time to a refusal", "s", refusals_s or [float("nan")])
    report.measure("memory of the gateway", "MiB", found.gateway_mib)
    report.measure("cores of the gateway", "cores", [found.gateway_cores])
    report.measure("adapters answered", "adapters", [len({one.call.policy for one in in_time})])
    report.check_at_least(
        f"admitted requests with a first token within {DEADLINE_S:g} s",
        len(in_time) / len(admitted) if admitted else None,
        KEPT_SHARE,
    )
    enough = bool(refusals_s)
    report.check_at_most("refusal p95, s", percentile(refusals_s, 0.95) if enough else None, REFUSAL_P95_S)
    report.check_at_most("refusal p99, s", percentile(refusals_s, 0.99) if enough else None, REFUSAL_P99_S)
    named = sum(one.retry_after_s is not None for one in refused)
    report.check_at_least("refusals that say when to come back", named / len(refused) if enough else None, 1.0)
    report.check_at_most("growth of the gateway's memory, MiB", growth, MEMORY_GROWTH_MIB)
    report.check_at_most("errors", len(faults), 0, faults[0].error if faults else "")
    for kind, count in Counter(f"{one.status} {one.error[:120]}" for one in found.outcomes if one.error).most_common(6):
        report.note(f"{count} x {kind}")
    report.note(f"{OVERLOAD:g} times the capacity, open loop; refused users don't come back")


OVERLOAD_SCENARIO = Scenario("overload", "three times the capacity: deadlines of the admitted, speed of refusals", run)
