import asyncio

import pytest

from openmint.errors import Overloaded
from openmint_gateway.waiting_room import WaitingRoom


async def test_tenants_are_let_in_by_turns_however_many_each_has_waiting():
    room, order = WaitingRoom(100, 1000), []

    async def wait(tenant: str, number: int) -> None:
        await room.turn("engine", tenant)
        order.append(f"{tenant}{number}")

    waits = [asyncio.create_task(wait("loud", number)) for number in range(4)]
    await asyncio.sleep(0)
    waits += [asyncio.create_task(wait("quiet", number)) for number in range(2)]
    await asyncio.sleep(0)
    for _ in range(6):
        room.wake("engine")
        await asyncio.sleep(0)
    await asyncio.gather(*waits)
    assert order == ["loud0", "quiet0", "loud1", "quiet1", "loud2", "loud3"]


async def test_a_request_that_was_sent_back_keeps_its_place():
    room, order = WaitingRoom(100, 1000), []

    async def wait(name: str, *, first: bool = False) -> None:
        await room.turn("engine", "acme", first=first)
        order.append(name)

    later = asyncio.create_task(wait("later"))
    await asyncio.sleep(0)
    back = asyncio.create_task(wait("back", first=True))
    await asyncio.sleep(0)
    room.wake("engine")
    await asyncio.sleep(0)
    assert order == ["back"]
    await asyncio.gather(later, back)


async def test_without_any_news_the_head_of_the_queue_asks_again_by_itself():
    room = WaitingRoom(10, 10)
    await asyncio.wait_for(room.turn("engine", "acme"), 2)


async def test_one_who_leaves_gives_the_turn_to_the_next():
    room = WaitingRoom(10, 10)
    first = asyncio.create_task(room.turn("engine", "acme"))
    second = asyncio.create_task(room.turn("engine", "acme"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    room.wake("engine")
    await asyncio.wait_for(second, 2)


async def test_seats_are_bounded_per_tenant_and_in_all_and_given_back():
    room = WaitingRoom(2, 3)
    async with room.seat("a"), room.seat("a"):
        with pytest.raises(Overloaded) as caught:
            async with room.seat("a"):
                pass
        assert caught.value.retry_after_s
        async with room.seat("b"):
            with pytest.raises(Overloaded):
                async with room.seat("c"):
                    pass
    assert room.total == 0


async def test_an_engine_is_contended_only_while_somebody_waits_for_it():
    room = WaitingRoom(2, 3)
    assert not room.is_contended("engine")
    waiting = asyncio.create_task(room.turn("engine", "a"))
    await asyncio.sleep(0)
    assert room.is_contended("engine")
    await waiting
    assert not room.is_contended("engine")
    for _ in range(200):
        if not room._places:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the place was never given up")


async def test_a_tenant_that_is_sent_back_again_and_again_does_not_hold_up_another():
    room, order = WaitingRoom(100, 1000), []

    async def wait(tenant: str, *, first: bool = False) -> None:
        await room.turn("engine", tenant, first=first)
        order.append(tenant)

    waits = [asyncio.create_task(wait("loud", first=True)), asyncio.create_task(wait("quiet"))]
    await asyncio.sleep(0)
    room.wake("engine")
    await asyncio.sleep(0)
    waits.append(asyncio.create_task(wait("loud", first=True)))
    await asyncio.sleep(0)
    room.wake("engine")
    await asyncio.gather(*waits)
    assert order == ["loud", "quiet", "loud"]
