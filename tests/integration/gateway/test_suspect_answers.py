"""What callers see of an engine that withholds an answer because it is not made of numbers."""

HELLO = [{"role": "user", "content": "hello"}]


async def ask(world, http, **more):
    return await http.post("/v1/chat/completions", json={"model": world.model, "messages": HELLO, **more})


async def test_another_engine_answers_in_place_of_a_suspect_one(world, http):
    revision = await world.resident()
    second = await world.add_engine("engine-2")
    await second.hold(world.bus, revision.digest)
    for _ in range(4):
        world.engine.verdicts.append("suspect")
        answer = await ask(world, http)
        assert answer.status_code == 200
        world.engine.verdicts.clear()


async def test_a_request_that_spoils_engines_is_asked_twice_and_no_more(world, http):
    await world.resident()
    world.engine.verdicts.extend(["suspect"] * 5)
    answer = await ask(world, http)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_failed"
    assert len(world.engine.verdicts) == 3
