"""The gateway as a process of its own: it starts, answers, and stops cleanly."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from openmint.bus.connection import Bus
from openmint.settings import CommonSettings


def start(environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        command = [sys.executable, "-m", "openmint_gateway.app"]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


@pytest.mark.slow
async def test_it_starts_answers_and_stops_cleanly_on_sigterm(settings: CommonSettings, bus: Bus, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "OPENMINT_STATE_DIR": str(tmp_path),
        "OPENMINT_NATS_URL": settings.nats_url,
        "OPENMINT_NATS_USER": settings.nats_user,
        "OPENMINT_NATS_PASSWORD": settings.nats_password,
        "OPENMINT_POSTGRES_DSN": settings.postgres_dsn,
        "OPENMINT_PORT": str(port),
        "OPENMINT_HEALTH_FILE": str(tmp_path / "health.json"),
    }
    process = start(environment, tmp_path / "log")
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            for _ in range(600):
                assert process.poll() is None, (tmp_path / "log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get("/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
            assert (await http.get("/v1/models")).status_code == 401
        assert json.loads((tmp_path / "health.json").read_text())["checks"] == {"catalog": True, "bus": True}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert lines[-1]["event"] == "gateway.stopped"
        assert "torch" not in (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
