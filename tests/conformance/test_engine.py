"""What every engine must do, whatever it is made of."""

import asyncio

import pytest
from tests.conformance.conftest import Subject

from openmint.engines.protocol import AttachRequest, CommandStamp, Engine, Resident
from openmint.errors import BadAdapter, StaleEpoch


async def attach(subject: Subject, *digests: str) -> list[str]:
    for digest in digests:
        await subject.engine.stage(subject.stamp(), digest)
    results = await subject.engine.attach(subject.stamp(), [AttachRequest(digest, "acme/tone") for digest in digests])
    assert [result.error for result in results] == [""] * len(digests)
    return [result.adapter_name for result in results]


async def residents(engine: Engine) -> dict[str, Resident]:
    return {resident.adapter_name: resident for resident in (await engine.state()).residents}


async def test_a_new_engine_is_ready_and_empty(subject: Subject):
    state = await subject.engine.state()
    assert state.condition == "ready"
    assert state.residents == ()
    assert set(state.slot_adapters) == {None}
    assert 0 < state.slots <= state.capacity
    assert state.max_running > 0
    assert (state.running, state.waiting) == (0, 0)


async def test_a_staged_revision_becomes_resident(subject: Subject):
    digest = await subject.publish()
    result = await subject.engine.stage(subject.stamp(), digest)
    assert (result.digest, result.was_staged) == (digest, False)
    assert digest in (await subject.engine.state()).staged
    (name,) = await attach(subject, digest)
    assert (await residents(subject.engine))[name].digest == digest
    assert name in (await subject.engine.state()).slot_adapters


async def test_staging_again_does_nothing(subject: Subject):
    digest = await subject.publish()
    first = await subject.engine.stage(subject.stamp(), digest)
    again = await subject.engine.stage(subject.stamp(), digest)
    assert again.was_staged
    assert (again.layout, again.layout_bytes) == (first.layout, first.layout_bytes)


async def test_stagings_of_one_revision_at_once_all_succeed(subject: Subject):
    digest = await subject.publish()
    results = await asyncio.gather(*(subject.engine.stage(subject.stamp(), digest) for _ in range(5)))
    assert {result.digest for result in results} == {digest}


async def test_a_revision_that_is_not_staged_is_not_attached(subject: Subject):
    (result,) = await subject.engine.attach(subject.stamp(), [AttachRequest(await subject.publish(), "acme/tone")])
    assert result.error_code == "not_staged"
    assert result.error


async def test_a_bad_revision_is_refused_when_staged_and_never_becomes_resident(subject: Subject):
    digest = await subject.publish_bad()
    with pytest.raises(BadAdapter):
        await subject.engine.stage(subject.stamp(), digest)
    (result,) = await subject.engine.attach(subject.stamp(), [AttachRequest(digest, "acme/tone")])
    assert result.error_code == "not_staged"
    assert await residents(subject.engine) == {}


async def test_several_are_attached_at_once_with_answers_in_order(subject: Subject):
    digests = [await subject.publish() for _ in range(3)]
    missing = await subject.publish()
    for digest in digests:
        await subject.engine.stage(subject.stamp(), digest)
    requests = [AttachRequest(digest, "acme/tone") for digest in (digests[0], missing, *digests[1:])]
    results = await subject.engine.attach(subject.stamp(), requests)
    assert [result.digest for result in results] == [request.digest for request in requests]
    assert [result.error_code for result in results] == ["", "not_staged", "", ""]


async def test_a_resident_is_answered_with_its_present_name(subject: Subject):
    digest = await subject.publish()
    (name,) = await attach(subject, digest)
    version = (await subject.engine.state()).list_version
    assert await attach(subject, digest, digest) == [name, name]
    assert (await subject.engine.state()).list_version == version


async def test_an_adapter_name_is_never_used_again(subject: Subject):
    digest = await subject.publish()
    names: set[str] = set()
    for _ in range(3):
        (name,) = await attach(subject, digest)
        assert await subject.engine.remove(subject.stamp(), name, 10)
        names.add(name)
    assert len(names) == 3


async def test_a_full_engine_refuses_more_and_keeps_what_it_has(subject: Subject):
    capacity = (await subject.engine.state()).capacity
    names = await attach(subject, *[await subject.publish() for _ in range(capacity)])
    extra = await subject.publish()
    await subject.engine.stage(subject.stamp(), extra)
    (result,) = await subject.engine.attach(subject.stamp(), [AttachRequest(extra, "acme/tone")])
    assert result.error_code == "full"
    assert set(await residents(subject.engine)) == set(names)
    assert await subject.engine.remove(subject.stamp(), names[0], 10)
    await attach(subject, extra)


async def test_removing_frees_memory_and_slot(subject: Subject):
    names = await attach(subject, *[await subject.publish() for _ in range(2)])
    before = (await subject.engine.state()).list_version
    assert await subject.engine.remove(subject.stamp(), names[0], 10)
    state = await subject.engine.state()
    assert [resident.adapter_name for resident in state.residents] == [names[1]]
    assert names[0] not in state.slot_adapters
    assert state.list_version > before


async def test_removing_what_is_not_there_is_done_already(subject: Subject):
    assert await subject.engine.remove(subject.stamp(), "acme/tone@000000000000#1", 1)


async def test_a_staged_copy_can_be_dropped_but_not_that_of_a_resident(subject: Subject):
    idle, resident = await subject.publish(), await subject.publish()
    await subject.engine.stage(subject.stamp(), idle)
    await attach(subject, resident)
    await subject.engine.unstage(subject.stamp(), idle)
    await subject.engine.unstage(subject.stamp(), resident)
    staged = (await subject.engine.state()).staged
    assert idle not in staged
    assert resident in staged


async def test_the_last_command_follows_attaches_and_removes(subject: Subject):
    (name,) = await attach(subject, await subject.publish())
    command = subject.stamp()
    await subject.engine.remove(command, name, 10)
    assert (await subject.engine.state()).last_command == command.command


async def test_a_resident_tells_how_often_it_was_asked(subject: Subject):
    await attach(subject, await subject.publish(), await subject.publish())
    first, second = (await subject.engine.state()).residents
    for resident in (first, second, first):
        await subject.ask(resident)
    served = {name: resident.served for name, resident in (await residents(subject.engine)).items()}
    assert served == {first.adapter_name: 2, second.adapter_name: 1}


async def test_an_older_epoch_commands_nothing(subject: Subject):
    digest = await subject.publish()
    (name,) = await attach(subject, digest)
    old = CommandStamp(subject.stamp().epoch - 1, subject.stamp().command)
    with pytest.raises(StaleEpoch):
        await subject.engine.stage(old, digest)
    with pytest.raises(StaleEpoch):
        await subject.engine.attach(old, [AttachRequest(digest, "acme/tone")])
    with pytest.raises(StaleEpoch):
        await subject.engine.remove(old, name, 1)
    with pytest.raises(StaleEpoch):
        await subject.engine.unstage(old, digest)
    assert name in await residents(subject.engine)
