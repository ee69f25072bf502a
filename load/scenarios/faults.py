"""Faults on a running stack: an engine, the leader, the bus, an adapter of NaN; what users see, and for how long.

Two engines, two schedulers, a keeper. Users go on asking during each fault. Lost may be only what had begun to answer.
"""

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    from load.clients.records import Outcome
    from load.stack.openmint_stack import OpenmintStack
    from load.stack.policies import Policy, Shelved

REPOSITORY = Path(__file__).parents[2]
BASE = "smollm2-135m"

ELSEWHERE_S = 5.0
ENGINE_BACK_S = 90.0
LEADER_KILLED_S = 3.0
LEADER_STOPPED_S = 8.0
BUS_BACK_S = 10.0
MAX_ENGINES_RESTARTED = 2

ENGINES = 2
WARM_POLICIES, COLD_POLICIES = 20, 400
WAVE = 16
USERS, TOKENS = 4, 8
NEIGHBOURS = 8
SETTLE_S = 3.0
SCHEDULERS = ("scheduler", "scheduler-2")
STARTED_S = 15.0
"""A scheduler that runs for so long is connected and stands by, on a busy machine too."""

POISON_LIMIT_S = 240.0
ASK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each fault is repeated."""

    engine_kills: tuple[str, ...]
    leader_kills: int
    leader_stops: int
    bus_losses: int


FULL = Plan(("cold wave", "many policies"), 5, 3, 2)
QUICK = Plan(("many policies",), 2, 1, 1)


def run(options: Options, report: ReportBuilder) -> None:
    """All faults in turn, on one stack."""
    folder = REPOSITORY / ".openmint" / "bases" / BASE
    if not (folder / "config.json").exists():
        raise SystemExit(f"no base model {BASE}: run `make base`")
    asyncio.run(_run(folder, QUICK if options.is_quick else FULL, options.seed, report))


async def _run(folder: Path, plan: Plan, seed: int, report: ReportBuilder) -> None:
    from load.faults.traffic import warm
    from load.stack.engine_limits import EngineLimits
    from load.stack.openmint_stack import OpenmintStack
    from load.stack.policies import make_policies

    services = ("scheduler", "keeper", "gateway")
    async with OpenmintStack(folder, ENGINES, EngineLimits(), services=services, copies={"scheduler": 2}) as stack:
        shelved = await stack.seed(make_policies(WARM_POLICIES + COLD_POLICIES))
        policies = [each.policy for each in shelved]
        used, cold = policies[:WARM_POLICIES], iter(policies[WARM_POLICIES:-1])
        await warm(stack, used)
        _say("the stack is up and warm")
        for kind in plan.engine_kills:
            await _kill_engine(stack, kind, used, cold, seed, report)
        await _lose_leaders(stack, plan, used, cold, seed, report)
        await _lose_bus(stack, plan.bus_losses, used, cold, seed, report)
        await _poison(stack, shelved[-1], used[:NEIGHBOURS], seed, report)


async def _kill_engine(
    stack: "OpenmintStack", kind: str, used: "list[Policy]", cold: "Iterator[Policy]", seed: int, report: ReportBuilder
) -> None:
    from load.clients.records import Call
    from load.faults.processes import kill_engine
    from load.faults.traffic import PROMPT, Traffic, until

    victim = stack.engine_names[0]
    before = (await stack.engine_states())[victim]
    there = {resident.digest for resident in before.residents}
    asked = [policy for policy in used if stack.digest_of(policy) in there]
    async with Traffic(stack, used, USERS, TOKENS, seed) as traffic:
        await asyncio.sleep(SETTLE_S)
        if kind == "cold wave":
            asked = list(itertools.islice(cold, WAVE))
            wave = [asyncio.create_task(stack.ask(Call(policy, PROMPT, 1))) for policy in asked]
            await asyncio.sleep(0.1)
            killed_s = time.monotonic()
            kill_engine(stack, victim)
        else:
            killed_s = time.monotonic()
            kill_engine(stack, victim)
            wave = [asyncio.create_task(stack.ask(Call(policy, PROMPT, 1))) for policy in asked]
        outcomes = await asyncio.gather(*wave)
        waits = [(o.first_token_s or float("inf")) - killed_s for o in outcomes]
        back_s = await until(lambda: _is_usable(stack, victim, str(before.boot_id)), 2 * ENGINE_BACK_S, 0.5)
        back_s += max(0.0, time.monotonic() - killed_s - back_s)
        await asyncio.sleep(SETTLE_S)
    name = f"engine killed in {kind}"
    _say(f"{name}: elsewhere within {max(waits, default=0.0):.2f} s, back after {back_s:.1f} s")
    report.measure(f"{name}: its policies answer elsewhere", "s", waits)
    report.measure(f"{name}: engine back", "s", [back_s])
    report.measure(f"{name}: requests lost after their first token", "requests", [float(len(traffic.lost_begun()))])
    report.check_at_most(
        f"{name}: slowest of {len(waits)} policies elsewhere (s)", max(waits, default=float("inf")), ELSEWHERE_S
    )
    unbegun = traffic.lost_unbegun() + [o for o in outcomes if o.is_fault and not o.token_s]
    report.check_at_most(f"{name}: requests lost before their first token", float(len(unbegun)), 0.0, _words(unbegun))
    report.check_at_most(f"{name}: engine back (s)", back_s, ENGINE_BACK_S)


async def _lose_leaders(
    stack: "OpenmintStack", plan: Plan, used: "list[Policy]", cold: "Iterator[Policy]", seed: int, report: ReportBuilder
) -> None:
    from load.faults.processes import leader_pid, send
    from load.faults.traffic import Traffic, first_answer_s

    async with Traffic(stack, used, 2, TOKENS, seed) as traffic:
        for name, number, times, bound_s in (
            ("leader killed", signal.SIGKILL, plan.leader_kills, LEADER_KILLED_S),
            ("leader stopped", signal.SIGSTOP, plan.leader_stops, LEADER_STOPPED_S),
        ):
            found: list[float] = []
            for _ in range(times):
                await _two_schedulers(stack)
                pid = await leader_pid(stack)
                began_s = time.monotonic()
                send(pid, number)
                found.append(await first_answer_s(stack, cold, began_s, ASK_EVERY_S, 30.0))
                send(pid, signal.SIGCONT)
            _say(f"{name}: {', '.join(f'{took_s:.2f}' for took_s in found)} s")
            report.measure(f"{name}: a cold load works again", "s", found)
            report.check_at_most(f"{name}: slowest of {times} (s)", max(found), bound_s)
    lost = traffic.lost_unbegun() + traffic.lost_begun()
    report.check_at_most("leader lost: warm requests lost", float(len(lost)), 0.0, _words(lost))


async def _lose_bus(
    stack: "OpenmintStack", times: int, used: "list[Policy]", cold: "Iterator[Policy]", seed: int, report: ReportBuilder
) -> None:
    import nats

    from load.faults.processes import send
    from load.faults.traffic import Traffic, first_answer_s

    found: list[float] = []
    async with Traffic(stack, used, 2, TOKENS, seed) as traffic:
        for _ in range(times):
            await _two_schedulers(stack)
            settings = stack.settings
            client = await nats.connect(settings.nats_url, user=settings.nats_user, password=settings.nats_password)
            await client.jetstream().purge_stream("RESIDENCY")
            began_s = time.monotonic()
            send(stack.pid_of("nats"), signal.SIGKILL)
            await client.close()
            found.append(await first_answer_s(stack, cold, began_s, ASK_EVERY_S, 60.0))
    _say(f"bus restarted: {', '.join(f'{took_s:.2f}' for took_s in found)} s")
    report.measure("bus restarted without RESIDENCY: a cold load works again", "s", found)
    report.check_at_most("bus restarted without RESIDENCY: slowest (s)", max(found), BUS_BACK_S)
    lost = traffic.lost_unbegun() + traffic.lost_begun()
    report.check_at_most("bus restarted: warm requests lost", float(len(lost)), 0.0, _words(lost))


async def _poison(
    stack: "OpenmintStack", bad: "Shelved", neighbours: "list[Policy]", seed: int, report: ReportBuilder
) -> None:
    from load.clients.records import Call
    from load.faults.catalogue import states_of
    from load.faults.poison import poison
    from load.faults.traffic import PROMPT, Traffic, until, warm

    await _both_usable(stack)
    await warm(stack, neighbours)
    copies = await poison(stack, bad.digest)
    before = {name: state.boot_id for name, state in (await stack.engine_states()).items()}
    restarted: set[str] = set()

    async def look() -> bool:
        seen = await stack.snapshot()
        for engine in seen["engines"] if seen else []:
            if engine["boot_id"] != str(before[engine["engine"]]) or engine["condition"] == "suspect":
                restarted.add(engine["engine"])
        return "quarantined" in (await states_of(stack, [bad.digest])).values()

    async with Traffic(stack, neighbours, USERS, TOKENS, seed) as traffic:
        await asyncio.sleep(SETTLE_S)
        began_s = time.monotonic()
        first = await stack.ask(Call(bad.policy, PROMPT, 1))
        quarantined_s = await until(look, POISON_LIMIT_S, 0.5)
        quarantined_s += max(0.0, time.monotonic() - began_s - quarantined_s)
        _say(f"NaN adapter: first {first.status} {first.error[:80]!r}, quarantined after {quarantined_s:.1f} s")
        await _both_usable(stack)
        await until(look, 5.0)
        refused = await stack.ask(Call(bad.policy, PROMPT, 1))
        await asyncio.sleep(SETTLE_S)
    after = [await stack.ask(Call(policy, PROMPT, TOKENS)) for policy in neighbours]
    states = await states_of(stack, [stack.digest_of(policy) for policy in neighbours])
    gaps = [_longest_gap_s(traffic.outcomes, policy, began_s) for policy in neighbours]
    report.measure("NaN adapter: until it is quarantined", "s", [quarantined_s])
    report.measure("NaN adapter: a neighbour's longest time between answers", "s", gaps)
    lost = traffic.lost_unbegun() + traffic.lost_begun()
    report.measure("NaN adapter: neighbours' requests lost", "requests", [float(len(lost))])
    report.note(
        f"NaN adapter: {copies} prepared copies overwritten; the first request got {first.status} {first.error}"
    )
    report.note(f"NaN adapter: afterwards {refused.status} {refused.error}")
    if lost:
        report.note(f"NaN adapter, neighbours lost: {_words(lost)}")
    report.check_at_least("NaN adapter: quarantined", float(quarantined_s < float("inf")), 1.0)
    report.check_at_least(
        "NaN adapter: its alias answers 503 with the reason",
        float(refused.status == 503 and "quarantined" in refused.error),
        1.0,
        refused.error,
    )
    report.check_at_least(
        "NaN adapter: neighbours still eligible", float(list(states.values()).count("eligible")), float(len(neighbours))
    )
    report.check_at_least(
        "NaN adapter: neighbours answering afterwards", float(sum(o.is_answered for o in after)), float(len(after))
    )
    report.check_at_most("NaN adapter: engines restarted", float(len(restarted)), float(MAX_ENGINES_RESTARTED))


async def _is_usable(stack: "OpenmintStack", engine: str, former_boot: str = "") -> bool:
    seen = await stack.snapshot()
    return seen is not None and any(
        each["engine"] == engine and each["is_usable"] and each["boot_id"] != former_boot for each in seen["engines"]
    )


async def _both_usable(stack: "OpenmintStack") -> None:
    from load.faults.traffic import until

    async def are() -> bool:
        return all([await _is_usable(stack, name) for name in stack.engine_names])

    await until(are, 2 * ENGINE_BACK_S, 0.5)


async def _two_schedulers(stack: "OpenmintStack") -> None:
    """Both processes have run for a while: a killed one is started again by the stack's supervisor."""
    from load.faults.processes import age_s
    from load.faults.traffic import until

    await until(lambda: min(age_s(stack.pid_of(part)) for part in SCHEDULERS) > STARTED_S, 120.0, 0.5)
    await _both_usable(stack)


def _say(text: str) -> None:
    """Where the run is: it takes minutes, and its report comes at the end."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _longest_gap_s(outcomes: "list[Outcome]", policy: "Policy", since_s: float) -> float:
    """Between two answers of a policy, from the fault on."""
    times = sorted(o.ended_s for o in outcomes if o.call.policy == policy and o.is_answered and o.ended_s >= since_s)
    return max((b - a for a, b in itertools.pairwise([since_s, *times])), default=float("inf"))


def _words(outcomes: "list[Outcome]") -> str:
    """What the first few said."""
    return "; ".join(dict.fromkeys(f"{o.status} {o.error}"[:120] for o in outcomes[:5]))


FAULTS = Scenario("faults", "an engine, the leader, the bus and an adapter fail under traffic", run)
