"""One NATS server and one Postgres for the whole run; what a test gets of them is fresh.

Starting both costs about a second. A fresh catalogue is a copy of a migrated template (tens of milliseconds); a fresh
bus is the provisioned one, emptied.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from xdist.scheduler import LoadScopeScheduling

from openmint.bus.connection import Bus, connect_bus
from openmint.bus.provision import provision
from openmint.bus.streams import STREAMS
from openmint.catalog import Catalog
from openmint.catalog.migrate import migrate
from openmint.embedded.nats_server import EmbeddedNats
from openmint.embedded.postgres_server import EmbeddedPostgres
from openmint.settings import CommonSettings

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.fixtures_engine", "tests.fixtures_stack"]

TOGETHER = {"tests/lifecycle": "stack", "tests/conformance": "engine", "tests/integration/engine_host": "engine"}
"""Folders whose tests share what takes a minute to start; those of one group run in one worker, one after the other."""


class Together(LoadScopeScheduling):
    """Gives a worker whole groups; what is in no group goes by file.

    The marks of `xdist_group` would say the same, but xdist 3.8 writes them where pytest 9.2 no longer reads them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file.rpartition("/")[0], file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """What `--dist loadgroup` means here."""
    return Together(config, log) if config.getvalue("dist") == "loadgroup" else None


TEMPLATE = "openmint_template"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """The state directory of this run's servers; pytest's own folders can't be entered by the user of Postgres."""
    folder = Path(tempfile.mkdtemp(prefix="openmint-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def nats_server(servers_dir: Path) -> Iterator[EmbeddedNats]:
    """A NATS server with JetStream; don't stop it, start one of your own for that."""
    server = EmbeddedNats(servers_dir)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres server that trades safety for speed; don't stop it, start one of your own for that."""
    server = EmbeddedPostgres(
        servers_dir, options={"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
    )
    server.start()
    yield server
    server.erase()


@pytest.fixture(scope="session")
async def postgres_template(postgres_server: EmbeddedPostgres) -> str:
    """The DSN of the server's own database, after a migrated template has been made."""
    dsn = postgres_server.dsn
    await _execute(dsn, f"create database {TEMPLATE}")
    await migrate(_with_database(dsn, TEMPLATE))
    return dsn


@pytest.fixture(scope="session")
async def postgres_dsn(postgres_template: str) -> str:
    """A migrated database that the whole run shares."""
    return await _copy_template(postgres_template, "openmint_shared")


@pytest.fixture
async def fresh_dsn(postgres_template: str) -> AsyncIterator[str]:
    """A migrated database of this test alone."""
    name = f"openmint_test_{next(_numbers)}"
    yield await _copy_template(postgres_template, name)
    with contextlib.suppress(asyncpg.PostgresError):
        await _execute(postgres_template, f"drop database {name} with (force)")


@pytest.fixture
async def catalog(fresh_dsn: str) -> AsyncIterator[Catalog]:
    """The catalogue on a database of this test alone."""
    opened = await Catalog.open(fresh_dsn, min_size=1, max_size=8)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def nats_settings(nats_server: EmbeddedNats, servers_dir: Path) -> CommonSettings:
    """Settings that know the bus and no database."""
    return CommonSettings(
        state_dir=servers_dir,
        nats_url=nats_server.url,
        nats_user=nats_server.user,
        nats_password=nats_server.password,
        store_url=(servers_dir / "store").as_uri(),
    )


@pytest.fixture
def settings(nats_settings: CommonSettings, fresh_dsn: str, tmp_path: Path) -> CommonSettings:
    """Settings of a service: the run's bus, and a database, state directory and store of this test alone."""
    return nats_settings.model_copy(
        update={"postgres_dsn": fresh_dsn, "state_dir": tmp_path, "store_url": (tmp_path / "store").as_uri()}
    )


@pytest.fixture(scope="session")
async def provisioned_bus(nats_settings: CommonSettings) -> AsyncIterator[Bus]:
    """The run's own connection, after provisioning."""
    connected = await connect_bus(nats_settings, "tests")
    await provision(connected)
    yield connected
    await connected.close()


@pytest.fixture
async def bus(provisioned_bus: Bus) -> Bus:
    """A connected bus whose streams and consumers are as the table says, and empty."""
    report = await provision(provisioned_bus)
    for plan in STREAMS:
        if f"{plan.name}" not in report.created:
            await provisioned_bus.js.purge_stream(plan.name)
    return provisioned_bus


async def _copy_template(dsn: str, name: str) -> str:
    await _execute(dsn, f"create database {name} template {TEMPLATE} strategy file_copy")
    return _with_database(dsn, name)


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=30)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _with_database(dsn: str, name: str) -> str:
    return f"{dsn.rpartition('/')[0]}/{name}"
