"""Who is answered and who is refused when engines are full: tenants, adapters, deadlines, through the front door."""

import asyncio
import time
from collections import Counter

import httpx
import pytest

from openmint.endings import end

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"

pytestmark = pytest.mark.slow


async def metric(http: httpx.AsyncClient, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


async def learn_pace(world, http: httpx.AsyncClient, requests: int = 40) -> None:
    """Have the gateway see how fast the engine is when it is busy."""
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 10}
    answers = await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(requests)))
    assert {answer.status_code for answer in answers} <= {200, 429}


async def test_a_caller_says_how_long_it_waits_and_is_told_at_once_that_it_would_be_longer(world, http):
    await world.resident()
    await world.runs_at_most(1)
    world.engine.token_delay_s = 0.1
    for _ in range(6):
        await learn_pace(world, http, 5)
    body = {"model": world.model, "messages": HELLO, "max_tokens": 10}
    waiting = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(5)]
    await asyncio.sleep(0.1)
    refused = await http.post(CHAT, json=body, headers={"x-openmint-max-wait-s": "0.2"})
    assert not all(task.done() for task in waiting), "it was told after it might have had its turn"
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "wait_too_long"
    assert int(refused.headers["retry-after"]) >= 1
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    assert await metric(http, "openmint_gateway_refusals_total") >= 1
    for nonsense in ("soon", "-1", "nan", "0"):
        answer = await http.post(CHAT, json=body, headers={"x-openmint-max-wait-s": nonsense})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "x-openmint-max-wait-s"


async def test_a_flood_is_refused_where_it_comes_from_and_others_keep_their_deadline(world, http):
    """Three times what the engine can do from one tenant, beside a quiet one."""
    await world.resident()
    await world.resident("support", "quiet")
    await world.runs_at_most(2)
    world.engine.token_delay_s = 0.05
    flood = {"model": world.model, "messages": HELLO, "max_tokens": 10}
    codes: Counter[int] = Counter()
    refusals_s: list[float] = []

    async def ask() -> None:
        started_s = time.monotonic()
        answer = await http.post(CHAT, json=flood, headers={"x-openmint-max-wait-s": "1"})
        codes[answer.status_code] += 1
        if answer.status_code == 429:
            refusals_s.append(time.monotonic() - started_s)

    quiet: Counter[int] = Counter()
    async with await world.http("quiet") as other:
        flooding: list[asyncio.Task[None]] = []
        for number in range(120):
            flooding.append(asyncio.create_task(ask()))
            if number % 12 == 11:
                mine = {"model": "quiet/support", "messages": HELLO, "max_tokens": 10}
                answer = await other.post(CHAT, json=mine, headers={"x-openmint-max-wait-s": "3"})
                quiet[answer.status_code] += 1
            await asyncio.sleep(0.02)
        await asyncio.gather(*flooding)
    assert codes[429] >= 5
    assert codes[200] >= 5
    assert quiet[200] >= 9
    assert sorted(refusals_s)[len(refusals_s) // 2] < 0.5


async def test_every_adapter_gets_its_turn_beside_an_endless_stream_for_others(world, http):
    """Eight adapters keep the engine full; a ninth, which may not run beside them, is answered all the same."""
    busy = [await world.resident(f"busy-{number}") for number in range(8)]
    assert len({revision.digest for revision in busy}) == 8
    await world.resident("rare")
    await world.runs_at_most(8)
    world.engine.token_delay_s = 0.03
    stop = asyncio.Event()

    async def keep_asking(number: int) -> None:
        while not stop.is_set():
            body = {"model": f"{world.tenant}/busy-{number}", "messages": HELLO, "max_tokens": 10}
            await http.post(CHAT, json=body)

    async with await world.http() as mine:
        asking = [asyncio.create_task(keep_asking(number % 8)) for number in range(13)]
        await asyncio.sleep(0.3)
        try:
            body = {"model": f"{world.tenant}/rare", "messages": HELLO, "max_tokens": 10}
            answer = await mine.post(CHAT, json=body)
            assert answer.status_code == 200
            assert await metric(mine, "openmint_gateway_adapters") <= 8
        finally:
            stop.set()
            await asyncio.gather(*asking)


async def test_a_request_that_waits_for_a_load_holds_no_room_of_an_engine(world, http):
    await world.resident()
    await world.served("cold")
    await world.runs_at_most(1)
    world.answers_loads = False
    cold = [
        asyncio.create_task(http.post(CHAT, json={"model": f"{world.tenant}/cold", "messages": HELLO, "max_tokens": 1}))
        for _ in range(3)
    ]
    while not world.loads:
        await asyncio.sleep(0.01)
    for _ in range(100):
        if await metric(http, "openmint_gateway_loading") == 3:
            break
        await asyncio.sleep(0.01)
    answer = await http.post(CHAT, json={"model": world.model, "messages": HELLO})
    assert answer.status_code == 200
    await end(*cold)


async def test_a_queued_request_goes_to_an_engine_that_loads_its_adapter_meanwhile(world, http):
    revision = await world.resident()
    await world.runs_at_most(1)
    world.engine.token_delay_s = 0.3
    body = {"model": world.model, "messages": HELLO, "max_tokens": 10}
    asked = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(6)]
    await asyncio.sleep(0.1)
    second = await world.add_engine("engine-2")
    await second.hold(world.bus, revision.digest)
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert second.seen


async def test_a_queued_request_is_loaded_again_when_its_engine_goes(world, http):
    revision = await world.served("moving")
    second = await world.add_engine("engine-2")
    await second.hold(world.bus, revision.digest)
    await world.runs_at_most(1)
    second.token_delay_s = 0.1
    body = {"model": f"{world.tenant}/moving", "messages": HELLO, "max_tokens": 10}
    asked = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(6)]
    await asyncio.sleep(0.1)
    world.engines.remove(second)
    await second.leave(world.bus)
    answers = Counter(answer.status_code for answer in await asyncio.gather(*asked))
    assert answers[200] >= 3
    assert world.loads


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_gives_the_room_to_the_next_at_once(world, http, stream: bool):
    await world.resident()
    await world.runs_at_most(1)
    world.engine.tokens, world.engine.token_delay_s = 1000, 0.05
    body = {"model": world.model, "messages": HELLO, "stream": stream}
    holding = [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(3)]
    while len(world.engine.seen) < 3:
        await asyncio.sleep(0.01)
    world.engine.tokens, world.engine.token_delay_s = 3, 0.0
    async with await world.http("other") as other:
        waiting = asyncio.create_task(other.post(CHAT, json={"model": "tiny", "messages": HELLO}))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        holding[0].cancel()
        started_s = time.monotonic()
        assert (await waiting).status_code == 200
        assert time.monotonic() - started_s < 1
    await end(*holding)
