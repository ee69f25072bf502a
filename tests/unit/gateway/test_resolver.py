import asyncio
from uuid import uuid4

import pytest

from openmint.catalog.resolution import Resolution
from openmint.catalog.rows import RevisionState
from openmint.clock import ManualClock
from openmint.errors import CatalogUnavailable, NotFound, Quarantined
from openmint.events import AliasMoved, AliasTarget
from openmint.identifiers import PolicyModel, parse_model
from openmint_gateway.resolver import ABSENT_FRESH_S, STALE_S, Resolver

POLICY_ID = uuid4()


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def resolution(number: int, alias_version: int | None = None) -> Resolution:
    return Resolution(
        POLICY_ID, "base", uuid4(), digest(number), number, 10, RevisionState.ELIGIBLE, 8, 100, alias_version, ()
    )


def moved(number: int, alias_version: int) -> AliasMoved:
    target = AliasTarget(revision_id=uuid4(), digest=digest(number), number=number)
    return AliasMoved(
        tenant="acme",
        policy_id=POLICY_ID,
        policy="support",
        base="base",
        alias="production",
        alias_version=alias_version,
        targets=[target],
    )


class Catalogue:
    """A catalogue of one alias; it can be down, and it can be made to answer only when told."""

    def __init__(self, answer: Resolution | Exception) -> None:
        self.answer = answer
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def resolve(self, name: PolicyModel) -> Resolution:
        self.asked += 1
        answer = self.answer
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


def name(text: str = "acme/support") -> PolicyModel:
    parsed = parse_model(text)
    assert isinstance(parsed, PolicyModel)
    return parsed


def make(answer: Resolution | Exception, names: int = 100) -> tuple[Resolver, Catalogue, ManualClock]:
    catalogue, clock = Catalogue(answer), ManualClock(1000.0)
    resolver = Resolver(catalogue, clock, names=names, absent_names=2)
    resolver.heard()
    return resolver, catalogue, clock


async def test_requests_for_the_same_name_share_one_question():
    resolver, catalogue, _ = make(resolution(1, 1))
    found = await asyncio.gather(*(resolver.resolve(name()) for _ in range(50)))
    assert catalogue.asked == 1
    assert {item.revision.digest for item in found} == {digest(1)}
    await resolver.resolve(name())
    assert catalogue.asked == 1


async def test_a_waiter_that_leaves_does_not_end_the_question_for_the_others():
    resolver, catalogue, _ = make(resolution(1, 1))
    catalogue.gate.clear()
    first, second = (asyncio.create_task(resolver.resolve(name())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    catalogue.gate.set()
    assert (await second).revision.number == 1


async def test_a_move_is_answered_from_at_once_and_a_lower_version_never_applies():
    resolver, catalogue, _ = make(resolution(1, 4))
    await resolver.resolve(name())
    catalogue.answer = resolution(2, 5)
    await resolver.move(moved(2, 5))
    assert (await resolver.resolve(name())).revision.number == 2
    await resolver.move(moved(1, 4))
    assert (await resolver.resolve(name())).revision.number == 2
    assert catalogue.asked == 2


async def test_a_fill_in_flight_that_a_move_has_overtaken_is_asked_again():
    resolver, catalogue, _ = make(resolution(1, 4))
    catalogue.gate.clear()
    asking = asyncio.create_task(resolver.resolve(name()))
    await asyncio.sleep(0.01)
    await resolver.move(moved(2, 5))
    catalogue.answer = resolution(2, 5)
    catalogue.gate.set()
    assert (await asking).revision.number == 2
    assert catalogue.asked == 2


async def test_with_the_feed_silent_an_entry_is_checked_again_after_five_seconds():
    resolver, catalogue, clock = make(resolution(1, 1))
    await resolver.resolve(name())
    clock.advance(4.9)
    await resolver.resolve(name())
    assert catalogue.asked == 1
    clock.advance(0.2)
    await resolver.resolve(name())
    assert catalogue.asked == 2


async def test_with_the_feed_alive_an_entry_is_not_checked_again():
    resolver, catalogue, clock = make(resolution(1, 1))
    for _ in range(100):
        await resolver.resolve(name())
        clock.advance(0.5)
        resolver.heard()
    assert catalogue.asked == 1


async def test_with_the_catalogue_down_too_a_known_name_is_stale_for_fifteen_minutes_and_then_unknown():
    resolver, catalogue, clock = make(resolution(1, 1))
    await resolver.resolve(name())
    catalogue.answer = CatalogUnavailable()
    clock.advance(10)
    assert (await resolver.resolve(name())).is_stale
    clock.advance(STALE_S)
    with pytest.raises(CatalogUnavailable):
        await resolver.resolve(name())
    with pytest.raises(CatalogUnavailable):
        await resolver.resolve(name("acme/other"))


async def test_a_move_heard_while_the_catalogue_is_down_is_answered_from():
    resolver, catalogue, _ = make(resolution(1, 1))
    await resolver.resolve(name())
    catalogue.answer = CatalogUnavailable()
    await resolver.move(moved(2, 2))
    answer = await resolver.resolve(name())
    assert (answer.revision.number, answer.is_stale) == (2, True)


async def test_a_quarantined_revision_is_not_answered_from_even_while_the_catalogue_is_down():
    resolver, catalogue, _ = make(resolution(1, 1))
    await resolver.resolve(name())
    catalogue.answer = CatalogUnavailable()
    resolver.doubt("acme", "support", digest(1))
    with pytest.raises(Quarantined):
        await resolver.resolve(name())


async def test_an_absent_name_is_remembered_for_a_short_time_and_a_move_ends_that():
    resolver, catalogue, clock = make(NotFound("no such alias"))
    for _ in range(3):
        with pytest.raises(NotFound):
            await resolver.resolve(name())
    assert catalogue.asked == 1
    clock.advance(ABSENT_FRESH_S)
    with pytest.raises(NotFound):
        await resolver.resolve(name())
    assert catalogue.asked == 2
    catalogue.answer = resolution(1, 1)
    await resolver.move(moved(1, 1))
    assert (await resolver.resolve(name())).revision.number == 1


async def test_memory_is_bounded_while_ever_new_names_are_asked_for():
    resolver, _, _ = make(resolution(1, 1), names=10)
    for number in range(100):
        await resolver.resolve(name(f"acme/p{number}"))
    assert len(resolver._entries) == 10
    assert len(resolver._of_policy) == 10


async def test_waiting_for_a_move_to_be_visible_ends_with_it_or_at_the_deadline():
    resolver, _, _ = make(resolution(1, 1))
    waiting = asyncio.create_task(resolver.wait_visible(name(), 2, 5.0))
    await asyncio.sleep(0)
    await resolver.move(moved(2, 2))
    assert await waiting
    assert not await resolver.wait_visible(name(), 3, 0.01)


async def test_what_was_looked_up_before_the_feed_was_there_is_looked_up_again():
    catalogue, clock = Catalogue(resolution(1, 1)), ManualClock(1000.0)
    resolver = Resolver(catalogue, clock)
    await resolver.resolve(name())
    catalogue.answer = resolution(2, 2)
    clock.advance(0.5)
    resolver.heard()
    assert (await resolver.resolve(name())).revision.number == 2
    await resolver.resolve(name())
    assert catalogue.asked == 2
