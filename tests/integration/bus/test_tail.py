"""A view in memory is told everything once and in order, also over a restart of the server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from openmint.bus.connection import Bus, connect_bus
from openmint.bus.provision import provision
from openmint.bus.tail import Tail
from openmint.embedded.nats_server import EmbeddedNats
from openmint.endings import end
from openmint.events import Event, JobProgressed, JobStarted, RevisionRetired
from openmint.settings import CommonSettings


def a_start(fence: int) -> JobStarted:
    """A fact whose place in the order can be read off it."""
    return JobStarted(tenant="acme", job_id=uuid4(), policy="p", base="b", fence=fence)


@contextlib.asynccontextmanager
async def running(tail: Tail) -> AsyncIterator[None]:
    """The tail at work."""
    task = asyncio.create_task(tail.run())
    await asyncio.wait_for(tail.attached.wait(), 10)
    yield
    await end(task)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_new_tail_hears_what_comes_after_it(bus: Bus) -> None:
    await bus.publish_fact(a_start(1))
    seen: list[int] = []
    tail = Tail(bus, [JobStarted], lambda event: seen.append(event.fence), stream="EVENTS")
    async with running(tail):
        await bus.publish_fact(a_start(2))
        await until(lambda: seen == [2])


async def test_tail_of_everything_begins_at_the_beginning(bus: Bus) -> None:
    for fence in range(5):
        await bus.publish_fact(a_start(fence))
    seen: list[int] = []
    tail = Tail(bus, [JobStarted], lambda event: seen.append(event.fence), deliver="all", stream="EVENTS")
    async with running(tail):
        await until(lambda: seen == [0, 1, 2, 3, 4])
    assert tail.silent_s() < 5


async def test_only_the_classes_asked_for_are_heard_and_an_error_skips_one_message(bus: Bus) -> None:
    seen: list[Event] = []

    async def on_event(event: Event) -> None:
        if isinstance(event, JobStarted) and event.fence == 1:
            raise ValueError("a bug in a view")
        seen.append(event)

    retired = RevisionRetired(tenant="acme", revision_id=uuid4(), policy="p", base="b")
    async with running(Tail(bus, [JobStarted, RevisionRetired], on_event, stream="EVENTS")):
        await bus.publish_fact(a_start(1))
        await bus.nc.publish("openmint.job.started.v1.acme.x", b"{broken")
        await bus.publish_fact(retired)
        await until(lambda: bool(seen))
    assert seen == [retired]


async def test_progress_is_heard_without_a_stream(bus: Bus) -> None:
    seen: list[int] = []
    async with running(Tail(bus, [JobProgressed], lambda event: seen.append(event.step))):
        await bus.nc.flush()
        await bus.publish_soft(JobProgressed(tenant="acme", job_id=uuid4(), policy="p", base="b", step=7, steps=9))
        await until(lambda: seen == [7])


@pytest.mark.slow
async def test_kill_of_the_server_costs_a_tail_nothing(nats_settings: CommonSettings, tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    server.start()
    own = nats_settings.model_copy(update={"nats_url": server.url, "nats_password": server.password})
    bus = await connect_bus(own, "test")
    seen: list[int] = []
    try:
        await provision(bus)
        async with running(Tail(bus, [JobStarted], lambda event: seen.append(event.fence), stream="EVENTS")):
            for fence in range(20):
                if fence == 10:
                    server.kill()
                    server.start()
                    await until(lambda: bus.nc.is_connected)
                while not await bus.publish_soft(a_start(fence)):
                    await asyncio.sleep(0.05)
            await until(lambda: 19 in seen, timeout_s=30)
        assert seen == list(range(20))
        assert (await provision(bus)).changed == ()
    finally:
        await bus.close()
        server.stop()


@pytest.mark.slow
async def test_stream_made_anew_is_followed_from_its_beginning(bus: Bus) -> None:
    for fence in range(5):
        await bus.publish_fact(a_start(fence))
    seen: list[int] = []
    tail = Tail(bus, [JobStarted], lambda event: seen.append(event.fence), stream="EVENTS")
    async with running(tail):
        await bus.publish_fact(a_start(5))
        await until(lambda: seen == [5])
        await bus.js.delete_stream("EVENTS")
        await provision(bus)
        await bus.publish_fact(a_start(100))
        await until(lambda: seen == [5, 100], timeout_s=30)
