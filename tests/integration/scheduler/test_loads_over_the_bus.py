import asyncio
import json
import time
from uuid import UUID

import asyncpg
import pytest

from openmint.bus.dead_letters import list_dead
from openmint.engines.scheduler_view import query_subject
from openmint.engines.simulated import SimulatedTimings
from openmint.errors import LoadFailed, LoadTimeout, NoEngine
from openmint.events import AliasMoved, AliasTarget, Cause, LoadRequested
from openmint.events import LoadFailed as LoadFailedFact


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


async def test_two_hundred_waiters_of_one_missing_policy_are_one_stage_and_one_attach(fleet):
    engine = await fleet.engine("a")
    await fleet.scheduler()
    places = await asyncio.gather(*(fleet.loads.ensure_resident(fleet.order(1), 30.0) for _ in range(200)))
    assert {place.engine for place in places} == {engine.name}
    assert places[0].adapter_name.startswith("acme/p1@sha256:")
    assert engine.stages[digest(1)] == 1
    assert engine.attaches[digest(1)] == 1


@pytest.mark.slow
async def test_many_policies_are_attached_in_few_batches_and_more_than_fit_evict(fleet):
    engine = await fleet.engine("a", capacity=4)
    await fleet.scheduler()
    await asyncio.gather(*(fleet.loads.ensure_resident(fleet.order(n), 30.0) for n in range(1, 5)))
    assert len(engine.batches) <= 4
    place = await fleet.loads.ensure_resident(fleet.order(9), 30.0)  # The leases of the first four lapse first.
    assert place.engine == engine.name
    assert len(engine.adapters) == 4


async def test_a_bad_adapter_is_told_to_the_waiter_with_its_reason(fleet):
    engine = await fleet.engine("a")
    engine.faults.bad = {digest(1)}
    await fleet.scheduler()
    with pytest.raises(LoadFailed, match="wrong shape"):
        await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    assert (await fleet.loads.ensure_resident(fleet.order(2), 30.0)).engine == engine.name


@pytest.mark.slow
async def test_without_an_engine_of_the_pool_the_waiter_hears_it_before_its_deadline(fleet):
    await fleet.engine("a")
    await fleet.scheduler()
    started_s = time.monotonic()
    with pytest.raises(NoEngine) as caught:
        await fleet.loads.ensure_resident(fleet.order(1, pool="gate-fp32"), 60.0)
    assert caught.value.retry_after_s
    assert time.monotonic() - started_s < 20.0


async def test_a_waiter_without_a_scheduler_gets_a_timeout(fleet):
    await fleet.engine("a")
    with pytest.raises(LoadTimeout):
        await fleet.loads.ensure_resident(fleet.order(1), 0.5)


async def test_a_cancelled_waiter_leaves_nothing_behind(fleet, eventually):
    await fleet.engine("a")
    task = asyncio.create_task(fleet.loads.ensure_resident(fleet.order(1), 30.0))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not fleet.loads._waits
    assert not fleet.view.index._expected


async def test_an_alias_move_prefetches_without_a_request(fleet, eventually):
    engine = await fleet.engine("a")
    await fleet.scheduler()
    target = AliasTarget(revision_id=UUID(int=5), digest=digest(5), number=5)
    await fleet.bus.publish_fact(
        AliasMoved(
            tenant="acme",
            policy_id=UUID(int=1),
            policy="p",
            base=fleet.base,
            alias="production",
            alias_version=1,
            targets=[target],
        )
    )
    await eventually(lambda: digest(5) in engine.adapters)


async def test_the_scheduler_answers_what_it_knows(fleet):
    await fleet.engine("a")
    await fleet.scheduler()
    await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    async with asyncio.timeout(10):  # The engine's own word may be heard before the scheduler has taken it in.
        while True:
            answer = await fleet.bus.nc.request(query_subject(fleet.base), b"", timeout=5)
            seen = json.loads(answer.data)
            (engine,) = seen["engines"]
            if [resident["revision"] for resident in engine["residents"]] == [digest(1)]:
                break
    assert seen["epoch"] == 1


async def test_an_unreadable_request_goes_to_the_dead_letters_and_the_next_is_served(fleet, eventually):
    await fleet.engine("a")
    await fleet.scheduler()
    subject = f"openmint.load.requested.v1.{fleet.base}.acme.x"
    await fleet.bus.js.publish(subject, b'{"base": 7}')
    place = await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    assert place.adapter_name

    async def is_buried():
        return any(letter.subject == subject for letter in await list_dead(fleet.bus, limit=500))

    async with asyncio.timeout(10):
        while not await is_buried():
            await asyncio.sleep(0.05)


async def test_a_policy_of_an_engine_that_died_answers_elsewhere(fleet, eventually):
    first = await fleet.engine("a")
    await fleet.scheduler()
    place = await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    second = await fleet.engine("b")
    await eventually(lambda: len(fleet.view.engines_of(fleet.base, "serve")) == 2)
    assert place.engine == first.name
    await first.die(announced=True)
    await eventually(lambda: not fleet.view.engines_with(fleet.base, "serve", digest(1)))
    again = await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    assert again.engine == second.name


async def test_another_scheduler_takes_over_within_three_seconds_and_knows_what_is_resident(fleet, eventually):
    engine = await fleet.engine("a")
    first = await fleet.scheduler("first")
    await eventually(lambda: first.shells[fleet.base].conductor is not None)
    second = await fleet.scheduler("second")
    await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    assert second.shells[fleet.base].conductor is None
    lead_connection = await asyncpg.connect(fleet.settings.postgres_dsn)
    started_s = time.monotonic()
    for task in first._tasks.values():  # As if killed: nothing is said, the connections are gone.
        task.cancel()
    await lead_connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
        f"openmint-leader-{fleet.base}",
    )
    await lead_connection.close()
    await fleet.loads.ensure_resident(fleet.order(2), 30.0)
    took_s = time.monotonic() - started_s
    assert second.shells[fleet.base].conductor.epoch == 2
    assert engine.attaches == {digest(1): 1, digest(2): 1}
    assert took_s <= 3.0


async def test_a_leader_that_lost_its_lock_commands_no_more(fleet, eventually):
    await fleet.engine("a")
    first = await fleet.scheduler("first")
    shell = first.shells[fleet.base]
    await eventually(lambda: shell.conductor is not None)
    conductor = shell.conductor
    connection = await asyncpg.connect(fleet.settings.postgres_dsn)
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
        f"openmint-leader-{fleet.base}",
    )
    await connection.close()
    await eventually(lambda: conductor.is_over.is_set())
    await eventually(lambda: shell.conductor is not None and shell.conductor.epoch == 2)
    assert (await fleet.loads.ensure_resident(fleet.order(1), 30.0)).adapter_name


@pytest.mark.slow
async def test_an_engine_refuses_an_older_epoch_and_its_commander_steps_back(fleet, eventually):
    engine = await fleet.engine("a")
    first = await fleet.scheduler("first")
    shell = first.shells[fleet.base]
    await eventually(lambda: shell.conductor is not None)
    engine._epoch = 2  # A newer leader has been here.
    await fleet.loads.ensure_resident(fleet.order(1), 30.0)
    assert shell.conductor.epoch >= 2


@pytest.mark.slow
async def test_a_lease_keeps_an_adapter_while_others_press_for_room(fleet):
    engine = await fleet.engine("a", capacity=1)
    await fleet.scheduler()
    async with fleet.loads.lease(fleet.order(1), 30.0):
        with pytest.raises(LoadTimeout):
            await fleet.loads.ensure_resident(fleet.order(2), 4.0)
        assert set(engine.adapters) == {digest(1)}
    assert (await fleet.loads.ensure_resident(fleet.order(2), 30.0)).adapter_name


async def test_the_deadline_of_one_who_gave_up_does_not_end_the_wait_of_the_next(fleet):
    await fleet.engine("a", timings=SimulatedTimings(stage_s=3.0))
    await fleet.scheduler()
    waiting = asyncio.create_task(fleet.loads.ensure_resident(fleet.order(1), 30.0))
    await asyncio.sleep(0.5)
    cause = Cause(code="load_timeout", detail="an earlier one's", fault="server")
    await fleet.bus.publish_fact(LoadFailedFact(base=fleet.base, pool="serve", digest=digest(1), cause=cause))
    assert (await waiting).adapter_name


async def test_a_request_for_another_base_is_left_to_its_leader(fleet):
    await fleet.engine("a")
    await fleet.scheduler()
    request = LoadRequested(
        base="somebody-elses", tenant="acme", policy="p", revision_id=UUID(int=3), digest=digest(3), rank=8,
        adapter_bytes=1, waiter="w",
    )  # fmt: skip
    await fleet.bus.publish_command(request, request.load_subject())
    assert (await fleet.loads.ensure_resident(fleet.order(1), 30.0)).adapter_name
