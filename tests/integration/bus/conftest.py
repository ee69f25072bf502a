"""Consumers of a test's own."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from faststream.nats import NatsBroker

from openmint.bus.broker import make_broker
from openmint.bus.connection import Bus
from openmint.bus.provision import consumer_config
from openmint.bus.streams import ConsumerPlan
from openmint.events import CheckpointSaved, Event
from openmint.settings import CommonSettings

_numbers = itertools.count()


@pytest.fixture
async def a_consumer(bus: Bus) -> AsyncIterator[Callable[..., Awaitable[ConsumerPlan]]]:
    """Make a consumer on EVENTS for this test alone."""
    made: list[ConsumerPlan] = []

    async def make(event: type[Event] = CheckpointSaved, ack_wait_s: float = 30.0) -> ConsumerPlan:
        plan = ConsumerPlan(f"test-{next(_numbers)}", "EVENTS", "test", event, ack_wait_s=ack_wait_s)
        await bus.js.add_consumer(plan.stream, consumer_config(plan, plan.filter_subject))
        made.append(plan)
        return plan

    yield make
    for plan in made:
        await bus.js.delete_consumer(plan.stream, plan.name)


@pytest.fixture
async def broker(bus: Bus, nats_settings: CommonSettings) -> AsyncIterator[NatsBroker]:
    """A broker of this test alone, to be started after its handlers are registered."""
    made = make_broker(nats_settings, "test")
    yield made
    await made.stop()
