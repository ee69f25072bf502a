"""A real engine that was given NaN: what is seen, what is withheld, and that an examination tells good from bad."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures_engine import RunningEngine

from openmint.bus.connection import Bus
from openmint.engines.protocol import AttachRequest
from openmint.events import EngineHeartbeat
from openmint_engine_host.layout import FILE_NAME, read_header

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def spoil_prepared(engine: RunningEngine, digest: str) -> None:
    """Put NaN into the prepared copy, behind every check."""
    (folder,) = Path(engine.state_dir).glob(f"spool/*/prepared/{digest.removeprefix('sha256:')}-*")
    file = folder / FILE_NAME
    header = read_header(file)
    with file.open("r+b") as opened:
        opened.seek(header.blob_offset)
        opened.write(np.full(header.blob_bytes // 4, np.nan, dtype=np.float32).tobytes())


async def beat_when(bus: Bus, engine: str, condition: str, timeout_s: float = 20.0) -> EngineHeartbeat:
    """The engine's next heartbeat in a condition."""
    beats = await bus.nc.subscribe(EngineHeartbeat.subject_filter())
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                beat = EngineHeartbeat.model_validate_json((await beats.next_msg(timeout=timeout_s)).data)
                if beat.engine == engine and beat.state == condition:
                    return beat
    finally:
        await beats.unsubscribe()


async def test_nan_is_withheld_told_survived_and_told_apart(fp32_engine: RunningEngine, bus: Bus):
    engine = fp32_engine.engine
    good, other, bad = [await fp32_engine.publish() for _ in range(3)]
    for digest in (good, other, bad):
        await engine.stage(fp32_engine.stamp(), digest)
    spoil_prepared(fp32_engine, bad)
    good_name, _, bad_name = await fp32_engine.attach(good, other, bad)
    before = await engine.state()

    async with fp32_engine.http() as http:
        body = {"model": good_name, "prompt": "one two", "max_tokens": 3, "temperature": 0}
        answer = (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        assert answer
        withheld = await http.post("/v1/completions", json={**body, "model": bad_name})
        assert withheld.status_code == 503
        assert withheld.headers["x-openmint-verdict"] == "suspect"
        refused = await http.post("/v1/completions", json=body)
        assert refused.headers["x-openmint-verdict"] == "busy"
    beat = await beat_when(bus, fp32_engine.name, "suspect")
    assert beat.suspects == [bad]

    await engine.restart(fp32_engine.stamp(), "it gave an answer that is not finite")
    await fp32_engine.until_ready(after_boot=str(before.boot_id))
    assert (await beat_when(bus, fp32_engine.name, "ready")).suspects == [bad]

    innocent = await engine.examine(fp32_engine.stamp(), AttachRequest(good, "acme/tone"))
    guilty = await engine.examine(fp32_engine.stamp(), AttachRequest(bad, "acme/tone"))
    again = await engine.examine(fp32_engine.stamp(), AttachRequest(good, "acme/tone"))
    print(json.dumps([str(found) for found in (innocent, guilty, again)], indent=1))
    assert (innocent.probes, innocent.failures, innocent.is_clean) == (2, 0, True)
    assert (guilty.probes, guilty.failures, guilty.is_clean) == (2, 2, True)
    assert (again.probes, again.failures, again.is_clean) == (2, 0, True)

    assert (await beat_when(bus, fp32_engine.name, "ready")).suspects == []
    assert (await engine.state()).residents == ()
    (good_name,) = await fp32_engine.attach(good)
    async with fp32_engine.http() as http:
        for _ in range(12):
            repeated = await http.post("/v1/completions", json={**body, "model": good_name})
            assert repeated.json()["choices"][0]["text"] == answer
