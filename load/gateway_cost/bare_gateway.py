"""A gateway process with its bus and catalogue, and one instant engine that holds every policy. No scheduler."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aiohttp
import asyncpg

from load.stack.catalogue import seed_catalogue
from load.stack.policies import Policy, Shelved, make_policies
from load.stack.server_process import ServerProcess
from openmint.bus.connection import Bus, connect_bus
from openmint.catalog import Catalog, bases, keys
from openmint.embedded.nats_server import EmbeddedNats
from openmint.embedded.postgres_server import EmbeddedPostgres
from openmint.embedded.process import free_port
from openmint.errors import EngineFailed
from openmint.events import AdapterResident, EngineHeartbeat
from openmint.identifiers import digest_from_hex
from openmint.provision import provision_all
from openmint.settings import CommonSettings

REPOSITORY = Path(__file__).parents[2]
BASE = "instant"
ENGINE = "instant-one"
POLICIES = 64
PEPPER = "pepper"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class BareGateway:
    """A running gateway."""

    url: str
    pid: int
    keys: dict[str, str]
    policies: list[Policy]


@contextlib.asynccontextmanager
async def bare_gateway(source: Path = REPOSITORY, max_running: int = 16) -> AsyncGenerator[BareGateway]:
    """Start everything; `source` is the repository whose gateway is measured."""
    folder = Path(tempfile.mkdtemp(prefix="openmint-load-"))
    folder.chmod(0o711)  # noqa: ASYNC240
    nats, postgres = EmbeddedNats(folder), EmbeddedPostgres(folder)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.to_thread(nats.start)
        stack.push_async_callback(asyncio.to_thread, nats.stop)
        await asyncio.to_thread(postgres.start)
        stack.push_async_callback(asyncio.to_thread, postgres.erase)
        settings = CommonSettings(state_dir=folder).resolve()
        await provision_all(settings, ())
        policies = make_policies(POLICIES)
        made = await _seed(settings, policies)
        engine = _process(stack, ["load.gateway_cost.instant_engine", str(port := free_port())], {}, folder)
        engine.start()
        gateway_port = free_port()
        gateway = _process(stack, ["openmint_gateway.app"], _environment(settings, source, gateway_port), folder)
        gateway.start()
        bus = await connect_bus(settings, "load")
        stack.push_async_callback(bus.close)
        beating = asyncio.create_task(_tell(bus, f"http://127.0.0.1:{port}", policies, max_running))
        stack.callback(beating.cancel)
        found = BareGateway(f"http://127.0.0.1:{gateway_port}", gateway.pid, made, policies)
        await _until_it_answers(found, gateway)
        yield found


def digest_of(policy: Policy) -> str:
    """The revision of a policy here."""
    return digest_from_hex(hashlib.sha256(policy.model.encode()).hexdigest())


def _process(
    stack: contextlib.AsyncExitStack, module: list[str], environment: dict[str, str], folder: Path
) -> ServerProcess:
    process = ServerProcess([sys.executable, "-m", *module], environment, folder / f"{module[0]}.log", REPOSITORY)
    stack.callback(process.stop)
    return process


def _environment(settings: CommonSettings, source: Path, port: int) -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join(str(source / part) for part in ("shared", "services")),
        "OPENMINT_STATE_DIR": str(settings.state_dir),
        "OPENMINT_PORT": str(port),
        "OPENMINT_KEY_PEPPER": PEPPER,
        "OPENMINT_ENGINE_KEY": "engine-key",
        "OPENMINT_ENGINE_READ_KEY": "read-key",
    }


async def _seed(settings: CommonSettings, policies: list[Policy]) -> dict[str, str]:
    catalog = await Catalog.open(settings.postgres_dsn)
    try:
        async with catalog.transaction() as connection:
            modules = {"model.layers.0.q_proj": (16, 16)}
            await bases.register_base(connection, BASE, digest_from_hex("b" * 64), "/bases/instant", modules, {})
        connection = await asyncpg.connect(settings.postgres_dsn)
        try:
            await seed_catalogue(connection, BASE, [Shelved(p, digest_of(p), 1000, 8, 16.0) for p in policies])
        finally:
            await connection.close()
        made: dict[str, str] = {}
        for tenant in sorted({policy.tenant for policy in policies}):
            async with catalog.transaction() as connection:
                made[tenant], _ = await keys.create_key(connection, tenant, ["infer"], pepper=PEPPER.encode())
        return made
    finally:
        await catalog.close()


async def _tell(bus: Bus, url: str, policies: list[Policy], max_running: int) -> None:
    """Be the engine's host on the bus."""
    boot_id, names = uuid4(), {digest_of(policy): f"{digest_of(policy)}#1" for policy in policies}
    list_hash = hashlib.sha256("\n".join(sorted(names.values())).encode()).hexdigest()[:16]
    while True:
        beat = EngineHeartbeat(
            base=BASE,
            base_digest=digest_from_hex("b" * 64),
            engine=ENGINE,
            boot_id=boot_id,
            pools=["serve"],
            url=url,
            control_url=url,
            capacity=POLICIES,
            max_rank=8,
            list_version=len(names),
            list_hash=list_hash,
            max_running=max_running,
        )
        await bus.publish_core(beat.subject(), beat)
        for sequence, (digest, name) in enumerate(names.items(), 1):
            fact = AdapterResident(
                base=BASE,
                engine=ENGINE,
                boot_id=boot_id,
                sequence=sequence,
                digest=digest,
                adapter_name=name,
                url=url,
                pools=["serve"],
            )
            await bus.publish_core(fact.subject(), fact)
        await asyncio.sleep(2.0)


async def _until_it_answers(gateway: BareGateway, process: ServerProcess) -> None:
    policy = gateway.policies[0]
    headers = {"authorization": f"Bearer {gateway.keys[policy.tenant]}"}
    body = {"model": policy.model, "prompt": "x", "max_tokens": 4}
    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in range(round(START_TIMEOUT_S / 0.1)):
            process.check()
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(f"{gateway.url}/v1/completions", json=body) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise EngineFailed(f"the gateway did not answer: {process.log.read_text()[-2000:]}")
