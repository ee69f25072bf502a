"""The catalogue goes away while the gateway serves: what is known still answers, what is not gets a clear 503."""

import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
import pytest

from openmint.catalog import Catalog, bases
from openmint.catalog.migrate import migrate
from openmint.embedded.postgres_server import EmbeddedPostgres


@pytest.mark.slow
async def test_a_known_name_still_answers_and_an_unknown_one_503(world, tmp_path: Path):
    from openmint_gateway.app import gateway_app, make_server

    server = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(server.start)
    await migrate(server.dsn)
    catalog = await Catalog.open(server.dsn)
    async with catalog.transaction() as conn:
        await bases.register_base(conn, world.engine.base, "sha256:" + "b" * 64, "/bases/tiny", {"l.q": (4, 4)}, {})
    shared = world.catalog
    world.catalog = catalog
    try:
        revision = await world.resident()
        key = await world.key()
        settings = world.settings.model_copy(update={"postgres_dsn": server.dsn, "state_dir": tmp_path})
        async with gateway_app(settings) as app:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                running = make_server(app)
                serving = asyncio.create_task(running.serve(sockets=[listener]))
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                headers = {"authorization": f"Bearer {key}"}
                async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
                    body = {"model": world.model, "prompt": "x"}
                    for _ in range(100):
                        with contextlib.suppress(httpx.TransportError):
                            if (await http.post("/v1/completions", json=body)).status_code == 200:
                                break
                        await asyncio.sleep(0.1)
                    await asyncio.to_thread(server.kill)
                    fresh = await http.post("/v1/completions", json=body)
                    assert fresh.status_code == 200
                    absent = await http.post("/v1/completions", json={**body, "model": f"{world.model}@1"})
                    assert (absent.status_code, absent.json()["error"]["code"]) == (503, "catalog_unavailable")
                    assert (await http.get("/v1/policies")).status_code == 503
                    assert (await http.get("/readyz")).json()["catalog"] is False
                    assert fresh.headers["x-openmint-revision"] == revision.digest
                running.should_exit = True
                await serving
    finally:
        world.catalog = shared
        await catalog.close()
        server.erase()
