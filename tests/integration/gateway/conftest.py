"""A gateway on a port of its own, with the run's NATS and Postgres, engines that speak the contract, and a loader that
answers load requests as scheduler and host would.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import pytest
from nats.aio.msg import Msg
from tests.contract_engine import KEY, ContractEngine

from openmint.bus.connection import Bus
from openmint.bus.provision import provision
from openmint.catalog import Catalog, aliases, bases, keys, revisions, tenants
from openmint.catalog.rows import AliasMove, Revision
from openmint.events import Cause, LoadFailed, LoadRequested
from openmint.identifiers import digest_from_hex
from openmint.settings import CommonSettings
from openmint_gateway.app import gateway_app, make_server
from openmint_gateway.settings import GatewaySettings

BASE = "tiny"
BASE_DIGEST = digest_from_hex("b" * 64)
PEPPER = "pepper"


@dataclass
class World:
    """What stands around the gateway, and short ways to things in a wanted state."""

    catalog: Catalog
    bus: Bus
    settings: GatewaySettings
    url: str = ""
    tenant: str = "acme"
    engines: list[ContractEngine] = field(default_factory=list)
    load_delay_s: float = 0.0
    load_failure: Cause | None = None
    answers_loads: bool = True
    loads: list[LoadRequested] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def model(self) -> str:
        """The policy that tests ask."""
        return f"{self.tenant}/support"

    @property
    def engine(self) -> ContractEngine:
        return self.engines[0]

    async def key(self, tenant: str = "", scopes: str = "train read infer promote admin") -> str:
        async with self.catalog.transaction() as conn:
            text, _ = await keys.create_key(conn, tenant or self.tenant, scopes.split(), pepper=PEPPER.encode())
        return text

    async def http(self, tenant: str = "", scopes: str = "train read infer promote admin") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {await self.key(tenant, scopes)}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, trust_env=False)

    async def revision(self, policy: str = "support", tenant: str = "", *, passed: bool = True) -> Revision:
        """A revision with its verdict."""
        tenant = tenant or self.tenant
        async with self.catalog.connection() as conn:
            await tenants.ensure_tenant(conn, tenant)
            revision = await revisions.begin_import(conn, "exporter", tenant, policy, BASE, "test", "me", 60)
            digest = digest_from_hex(uuid4().hex * 2)
            await revisions.commit_export(conn, revision.revision_id, revision.fence, digest, {"rank": 8}, 1000, 1.0)
            held = await revisions.claim_evaluation(conn, "me", 60, revision.revision_id)
            assert held is not None
            return await revisions.record_verdict(conn, held.revision_id, held.fence, passed, "tested", [])

    async def promote(self, revision: Revision, alias: str = "production") -> AliasMove:
        async with self.catalog.transaction() as conn:
            return await aliases.move_alias(
                conn,
                service="gateway",
                policy_id=revision.policy_id,
                alias=alias,
                revision_id=revision.revision_id,
                expected_version=None,
                actor="test",
                reason="",
            )

    async def served(self, policy: str = "support", tenant: str = "") -> Revision:
        """A revision in production."""
        revision = await self.revision(policy, tenant)
        await self.promote(revision)
        return revision

    async def resident(self, policy: str = "support", tenant: str = "") -> Revision:
        """A revision in production that the first engine holds."""
        revision = await self.served(policy, tenant)
        assert revision.digest is not None
        await self.engine.hold(self.bus, revision.digest)
        return revision

    async def add_engine(self, name: str) -> ContractEngine:
        """One more engine that holds nothing yet."""
        engine = await ContractEngine(name).start()
        self.engines.append(engine)
        return engine

    async def runs_at_most(self, sequences: int) -> None:
        """Have every engine tell of so many sequences in a step; the gateway sends two more."""
        for engine in self.engines:
            engine.max_running = sequences
        await asyncio.sleep(0.5)

    async def on_load(self, message: Msg) -> None:
        request = LoadRequested.model_validate_json(message.data)
        self.loads.append(request)
        if self.answers_loads:
            task = asyncio.create_task(self.load(request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def load(self, request: LoadRequested) -> None:
        await asyncio.sleep(self.load_delay_s)
        if self.load_failure is not None:
            await self.bus.publish_soft(
                LoadFailed(
                    base=request.base,
                    pool=request.pool,
                    digest=request.digest,
                    cause=self.load_failure,
                    retry_after_s=7,
                )
            )
        else:
            await self.engine.hold(self.bus, request.digest)

    async def beat(self) -> None:
        while True:
            for engine in self.engines:
                await self.bus.publish_core(engine.heartbeat().subject(), engine.heartbeat())
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
async def running_world(
    nats_settings: CommonSettings,
    postgres_dsn: str,
    provisioned_bus: Bus,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[World]:
    """A running gateway with one engine. One for the tests of a file: each takes a tenant of its own."""
    folder = tmp_path_factory.mktemp("gateway")
    settings = GatewaySettings(
        **nats_settings.model_dump(exclude={"postgres_dsn", "state_dir", "store_url"}),
        postgres_dsn=postgres_dsn,
        state_dir=folder,
        store_url=(folder / "store").as_uri(),
        key_pepper=PEPPER,
        engine_key=KEY,
        engine_read_key="read-key",
        status_hold_s=0.3,
        comment_every_s=0.2,
        wait_deadline_s=3.0,
        waiting_per_tenant=4,
        open_jobs_per_tenant=5,
        max_rank=64,
    )
    await provision(provisioned_bus)
    await provisioned_bus.js.purge_stream("JOBS")
    catalog = await Catalog.open(postgres_dsn)
    made = World(catalog, provisioned_bus, settings)
    async with catalog.transaction() as conn:
        modules = {"model.layers.0.q_proj": (16, 16), "model.layers.0.v_proj": (16, 16)}
        await bases.register_base(conn, BASE, BASE_DIGEST, "/bases/tiny", modules, {})
    made.engines.append(await ContractEngine("engine-1").start())
    subscription = await provisioned_bus.nc.subscribe(f"{LoadRequested.event_type()}.>", cb=made.on_load)
    beating = asyncio.create_task(made.beat())
    async with gateway_app(settings) as app:
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            server = make_server(app)
            server.config.timeout_graceful_shutdown = 1
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            await _until_ready(made)
            yield made
            server.should_exit = True
            await serving
    beating.cancel()
    await subscription.unsubscribe()
    for task in (*made.tasks, beating):
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
    for engine in made.engines:
        await engine.stop()
    await catalog.close()


_tenants = itertools.count(1)


@pytest.fixture
async def world(running_world: World) -> AsyncIterator[World]:
    """The gateway's surroundings as new: a new tenant, a first engine that holds nothing and behaves."""
    running_world.tenant = f"acme-{next(_tenants)}"
    running_world.loads.clear()
    yield running_world
    for extra in running_world.engines[1:]:
        running_world.engines.remove(extra)
        await extra.leave(running_world.bus)
    running_world.load_delay_s, running_world.load_failure, running_world.answers_loads = 0.0, None, True
    fresh = ContractEngine("engine-1")
    for name in (
        "verdicts",
        "told_revision",
        "dies_after_tokens",
        "token_delay_s",
        "tokens",
        "is_full",
        "refusal",
        "max_running",
    ):
        setattr(running_world.engine, name, getattr(fresh, name))
    running_world.engine.seen.clear()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """Bare HTTP with a key of the test's tenant that may do everything."""
    async with await world.http() as client:
        yield client


async def _until_ready(world: World) -> None:
    http = await world.http()
    async with http:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                engines = await http.get("/v1/engines")
                if engines.status_code == 200 and engines.json():
                    return
            await asyncio.sleep(0.05)
    pytest.fail("the gateway did not see its engine")
