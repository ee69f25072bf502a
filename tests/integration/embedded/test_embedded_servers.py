"""Servers that are killed come back with everything they acknowledged; servers that live are adopted, never doubled."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import nats
import pytest
from nats.js.api import StreamConfig

from openmint.bus.connection import disconnect
from openmint.embedded import nats_server, postgres_server
from openmint.embedded.nats_server import EmbeddedNats, parse_version
from openmint.embedded.postgres_server import EmbeddedPostgres
from openmint.embedded.process import ServerNotStarted
from openmint.errors import BadRequest
from openmint.settings import CommonSettings, endpoints_file


@pytest.fixture
def bus_server(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """A NATS server of this test alone."""
    server = EmbeddedNats(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def database_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A Postgres server of this file alone, with every safety on."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("state") / "deeper")
    server.start()
    yield server
    server.erase()


async def _connect(server: EmbeddedNats) -> nats.NATS:
    return await nats.connect(server.url, user=server.user, password=server.password)


@pytest.mark.slow
async def test_kill_of_nats_loses_nothing_that_it_acked(bus_server: EmbeddedNats) -> None:
    client = await _connect(bus_server)
    await client.jetstream().add_stream(StreamConfig(name="S", subjects=["s.>"]))
    acked = 0

    async def publish() -> None:
        nonlocal acked
        while True:
            await client.jetstream().publish("s.x", str(acked).encode(), timeout=2)
            acked += 1

    publishing = asyncio.create_task(publish())
    while acked < 200:
        await asyncio.sleep(0.01)
    url = bus_server.url
    bus_server.kill()
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    await disconnect(client)
    bus_server.start()
    assert bus_server.url == url
    client = await _connect(bus_server)
    assert (await client.jetstream().stream_info("S")).state.messages in (acked, acked + 1)
    await client.close()


@pytest.mark.slow
async def test_kill_of_postgres_loses_nothing_that_it_committed(database_server: EmbeddedPostgres) -> None:
    dsn = database_server.dsn
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table kept (n int)")
    for number in range(200):
        await connection.execute("insert into kept values ($1)", number)
    database_server.kill()
    await asyncio.to_thread(database_server.start)
    assert database_server.dsn == dsn
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("select count(*) from kept") == 200
    assert await connection.fetchval("show synchronous_commit") == "on"
    assert await connection.fetchval("show fsync") == "on"
    await connection.close()


@pytest.mark.slow
async def test_postgres_wants_its_password_and_listens_on_the_loopback_alone(
    database_server: EmbeddedPostgres,
) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(database_server.dsn.replace("postgres:", "postgres:wrong"))
    connection = await asyncpg.connect(database_server.dsn)
    assert await connection.fetchval("show listen_addresses") == "127.0.0.1"
    await connection.close()


def test_no_permission_outside_the_data_directory_is_changed(database_server: EmbeddedPostgres, tmp_path: Path) -> None:
    data = database_server.data_dir
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    # pytest makes its folders for their owner alone; that must still be so.
    assert stat.S_IMODE(tmp_path.parent.stat().st_mode) == 0o700
    if os.geteuid() == 0:
        assert data.stat().st_uid != 0


@pytest.mark.slow
def test_stale_pid_file_of_postgres_with_a_living_strangers_id_does_not_stop_it(
    database_server: EmbeddedPostgres,
) -> None:
    database_server.kill()
    path = database_server.data_dir / "postmaster.pid"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    database_server.start()
    assert database_server.is_running()


def test_running_server_is_adopted_by_the_next_process(database_server: EmbeddedPostgres, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from openmint.embedded.nats_server import EmbeddedNats\n"
        "server = EmbeddedNats(Path(sys.argv[1])); server.start(); print(server.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    heir = EmbeddedNats(tmp_path)
    heir.start()
    assert heir.pid == int(done.stdout)
    heir.stop()
    assert not heir.is_running()
    other = EmbeddedPostgres(database_server._state_dir)
    other.start()
    assert other.pid == database_server.pid


def test_server_that_is_killed_from_outside_is_started_again_on_its_port(bus_server: EmbeddedNats) -> None:
    pid, url = bus_server.pid, bus_server.url
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while bus_server.is_running():
        pass
    bus_server.start()
    assert bus_server.pid != pid
    assert bus_server.url == url


def test_endpoints_are_for_their_owner_and_settings_find_them(bus_server: EmbeddedNats, tmp_path: Path) -> None:
    path = endpoints_file(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = CommonSettings(state_dir=tmp_path).resolve(needs=["nats"])
    assert (settings.nats_url, settings.nats_user) == (bus_server.url, "openmint")
    assert settings.nats_password == bus_server.password
    assert bus_server.password not in repr(settings)
    assert settings.store_url == (tmp_path / "store").as_uri()


def test_address_that_is_set_wins_over_the_embedded_one(bus_server: EmbeddedNats, tmp_path: Path) -> None:
    settings = CommonSettings(state_dir=tmp_path, nats_url="nats://elsewhere:4222").resolve(needs=["nats"])
    assert (settings.nats_url, settings.nats_user) == ("nats://elsewhere:4222", "")


def test_missing_address_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="OPENMINT_NATS_URL"):
        CommonSettings(state_dir=tmp_path).resolve()
    with pytest.raises(BadRequest, match="OPENMINT_POSTGRES_DSN"):
        CommonSettings(state_dir=tmp_path, nats_url="nats://elsewhere:4222").resolve()


def test_broken_endpoints_file_is_named(tmp_path: Path) -> None:
    endpoints_file(tmp_path).write_text("{")
    with pytest.raises(BadRequest, match=r"endpoints\.json"):
        CommonSettings(state_dir=tmp_path).resolve()


def test_too_old_nats_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "FLOOR", (99, 0, 0))
    server = EmbeddedNats(tmp_path)
    with pytest.raises(ServerNotStarted, match=r"too old: 99\.0\.0"):
        server.start()
    assert not server.is_running()


def test_too_old_postgres_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "FLOOR", 99)
    with pytest.raises(ServerNotStarted, match="version 99 or later"):
        postgres_server.find_binaries()


def test_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    server.start()
    server.stop()
    (tmp_path / "nats" / "jetstream").rename(tmp_path / "nats" / "away")
    (tmp_path / "nats" / "jetstream").write_text("a file where a folder must be")
    with pytest.raises(ServerNotStarted, match=r"(?s)ended at once.*JetStream"):
        server.start()


@pytest.mark.parametrize(("text", "version"), [("2.15.1", (2, 15, 1)), ("2.14.0-beta.1", (2, 14, 0)), ("x", (0,))])
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_secrets_are_in_files_for_their_owner(bus_server: EmbeddedNats, tmp_path: Path) -> None:
    bus_server.add_tenant_user("acme")
    for path in (tmp_path / "nats").glob("*.*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    again = EmbeddedNats(tmp_path)
    assert again.add_tenant_user("acme") == bus_server.add_tenant_user("acme")
    assert json.loads((tmp_path / "nats" / "secrets.json").read_text())["tenants"].keys() == {"acme"}
