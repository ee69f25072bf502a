"""Death, restart and long use of a real engine."""

import signal
import time

import psutil
import pytest
from tests.fixtures_engine import RunningEngine

from openmint.errors import EngineFailed

pytestmark = [pytest.mark.engine, pytest.mark.slow]


async def test_a_killed_worker_brings_a_new_boot_without_adapters(fp32_engine: RunningEngine):
    (name,) = await fp32_engine.attach(await fp32_engine.publish())
    before = await fp32_engine.engine.state()
    old = fp32_engine.vllm_processes()
    old["VLLM::Worker"].send_signal(signal.SIGKILL)
    after = await fp32_engine.until_ready(after_boot=str(before.boot_id))
    assert after.boot_id != before.boot_id
    assert after.residents == ()
    assert not [title for title, process in old.items() if process.is_running()], "nothing of the old boot is left"
    async with fp32_engine.http() as http:
        answer = await http.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 1})
        assert answer.headers["x-openmint-verdict"] == "absent"


async def test_memory_stays_flat_over_two_hundred_loads(fp32_engine: RunningEngine):
    digests = [await fp32_engine.publish() for _ in range(10)]
    for digest in digests:
        await fp32_engine.engine.stage(fp32_engine.stamp(), digest)
    worker = fp32_engine.vllm_processes()["VLLM::Worker"]
    server = fp32_engine.vllm_processes()["server"]

    async def cycle(count: int) -> None:
        async with fp32_engine.http() as http:
            for number in range(count):
                (name,) = await fp32_engine.attach(digests[number % len(digests)])
                body = {"model": name, "prompt": "a", "max_tokens": 1}
                assert (await http.post("/v1/completions", json=body)).status_code == 200
                assert await fp32_engine.engine.remove(fp32_engine.stamp(), name, 10)

    await cycle(50)
    before = worker.memory_info().rss, server.memory_info().rss
    await cycle(200)
    after = worker.memory_info().rss, server.memory_info().rss
    assert after[0] - before[0] < 40 << 20
    assert after[1] - before[1] < 40 << 20
    assert (await fp32_engine.engine.state()).residents == ()


async def test_a_killed_host_takes_its_engine_with_it(fp32_engine: RunningEngine):
    """Last in this file: the session's engine host is started anew."""
    assert fp32_engine.process is not None
    old = fp32_engine.vllm_processes()
    assert {"VLLM::Worker", "VLLM::EngineCore", "server"} <= set(old)
    fp32_engine.process.kill()
    fp32_engine.process.wait()
    psutil.wait_procs(list(old.values()), timeout=20)
    assert not [title for title, process in old.items() if process.is_running()]
    with pytest.raises(EngineFailed):
        await fp32_engine.engine.state()
    began = time.monotonic()
    fp32_engine.start()
    await fp32_engine.until_ready()
    assert time.monotonic() - began < 280
