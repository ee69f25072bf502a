"""OpenmintStack: the real services on this machine for one scenario, reached as users and as operators reach them.

No trainer, exporter or evaluator: policies are seeded as eligible. The stack's own supervisor restarts what dies.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import asyncpg
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from load.clients.completions import complete, make_session
from load.clients.records import Call, Outcome
from load.stack.adapters import AdapterShelf
from load.stack.catalogue import seed_catalogue
from load.stack.counters import EngineCounters, count_host_log
from load.stack.engine_limits import EngineLimits
from load.stack.load_events import LoadRecord, read_loads
from load.stack.policies import Policy, Shelved
from load.stack.worker_notes import NOTES_FILE, count_notes
from openmint.catalog.keys import create_key
from openmint.engines.protocol import CommandStamp, EngineState
from openmint.engines.scheduler_view import query_subject
from openmint.engines.vllm import HostEngine
from openmint.errors import EngineFailed
from openmint.events import EngineHeartbeat
from openmint.local_stack import EngineSpec, StackPlan, down, free_port, secret_file, status, up
from openmint.settings import CommonSettings

REPOSITORY = Path(__file__).parents[2]
EXTENSION = "load.stack.noted_workers.OurNotedWorker"
ENGINE_NAMES = ("one", "two", "three", "four")
START_TIMEOUT_S = 400.0
SETTLE_TIMEOUT_S = 60.0
QUERY_TIMEOUT_S = 2.0
POLL_S = 0.2
REMOVE_TIMEOUT_S = 30.0


class OpenmintStack:
    """Start it with `async with`; it answers when the block begins, and nothing of it is left when the block ends.

    Raises, on entry: EngineFailed when its engines are not up in time; StackDown.
    """

    name = "openmint"

    def __init__(
        self,
        base_folder: Path,
        engines: int = 1,
        limits: EngineLimits | None = None,
        *,
        state_dir: Path | None = None,
        tenants: int = 8,
        env: Mapping[str, str] | None = None,
        services: Sequence[str] = ("scheduler", "gateway"),
        copies: Mapping[str, int] | None = None,
    ) -> None:
        self.base_folder = base_folder
        self.base = base_folder.name
        self.limits = limits or EngineLimits()
        self.engine_names = ENGINE_NAMES[:engines]
        self._owns_state_dir = state_dir is None
        self.state_dir = state_dir or Path(tempfile.mkdtemp(prefix="openmint-load-"))
        self.settings = CommonSettings(state_dir=self.state_dir)
        self._tenants = [f"t{number}" for number in range(tenants)]
        self._env = dict(env or {})
        self._services = tuple(services)
        self._copies = dict(copies or {})
        self._keys: dict[str, str] = {}
        self._digests: dict[Policy, str] = {}
        self._shelf: AdapterShelf | None = None
        self._session: aiohttp.ClientSession | None = None
        self._nats: NatsClient | None = None
        self._beats: dict[str, EngineHeartbeat] = {}
        self.url = ""

    async def __aenter__(self) -> Self:
        self.state_dir.chmod(0o711)  # The embedded Postgres may run as another user and must pass through.
        plan = StackPlan(
            state_dir=self.state_dir,
            engines=tuple(EngineSpec(name, self.limits.dtype, ("serve",)) for name in self.engine_names),
            base_folders=(self.base_folder,),
            gateway_port=free_port(),
            services=self._services,
            copies=self._copies,
            extra_env={
                "OPENMINT_DRAIN_S": "1",
                # The last of two such arguments counts.
                "OPENMINT_VLLM_ARGUMENTS": f"--worker-extension-cls {EXTENSION}",
                "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
                **self.limits.as_settings(),
                **self._env,
            },
        )
        try:
            self.url = (await asyncio.to_thread(up, plan)).gateway_url
            self.settings = CommonSettings(state_dir=self.state_dir).resolve()
            await self._connect()
            await self._make_keys()
            await self._until(self._is_ready, "the stack's engines", START_TIMEOUT_S)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def key(self, tenant: str) -> str:
        """An API key of that tenant with the scope infer."""
        return self._keys[tenant]

    def open_shelf(self, **settings: Any) -> AdapterShelf:
        """The shelf of this stack, with the settings of `AdapterShelf.open`; without a call its defaults hold."""
        if self._shelf is None:
            self._shelf = AdapterShelf.open(self.state_dir, self.base_folder, rank=self.limits.max_rank, **settings)
        return self._shelf

    async def seed(self, policies: Sequence[Policy]) -> list[Shelved]:
        """Put revisions into the store and into the catalogue: eligible, under the alias production."""
        shelved = await asyncio.to_thread(self.open_shelf().put, policies)
        connection = await asyncpg.connect(self.settings.postgres_dsn)
        try:
            await seed_catalogue(connection, self.base, shelved)
        finally:
            await connection.close()
        self._digests.update({s.policy: s.digest for s in shelved})
        return shelved

    def digest_of(self, policy: Policy) -> str:
        """The digest that every answer of this policy must name; empty when it was not seeded here."""
        return self._digests.get(policy, "")

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        """Ask the gateway as the policy's tenant (this makes the stack a `Target`)."""
        assert self._session is not None
        return await complete(
            self._session,
            self.url,
            call.policy.model,
            call,
            headers={"authorization": f"Bearer {self._keys[call.policy.tenant]}"},
            scheduled_s=scheduled_s,
            expected_revision=self.digest_of(call.policy),
        )

    async def engine_states(self) -> dict[str, EngineState]:
        """Every engine's own word. Raises: EngineFailed when one does not answer."""
        found: dict[str, EngineState] = {}
        for name in self.engine_names:
            engine = self.host(name)
            try:
                found[name] = await engine.state()
            finally:
                await engine.close()
        return found

    async def snapshot(self) -> dict[str, Any] | None:
        """What the scheduler knows; None while nobody leads."""
        assert self._nats is not None
        try:
            answer = await self._nats.request(query_subject(self.base), b"", timeout=QUERY_TIMEOUT_S)
        except (NatsError, TimeoutError):
            return None
        return json.loads(answer.data)

    def log_of(self, part: str) -> Path:
        """The log of a part: gateway, scheduler, engine-one …"""
        return self.state_dir / "logs" / f"{part}.log"

    def pid_of(self, part: str) -> int:
        """The process of a part; 0 while it is being restarted."""
        return status(self.state_dir).pid_of(part)

    async def counters(self) -> dict[str, EngineCounters]:
        """What each engine did since it was started."""
        logs = {name: self.log_of(f"engine-{name}") for name in self.engine_names}
        done = {name: await asyncio.to_thread(count_host_log, log) for name, log in logs.items()}
        for name, counters in done.items():
            notes = self.state_dir / "spool" / name / NOTES_FILE
            swaps = (await asyncio.to_thread(count_notes, notes)).slot_swaps
            done[name] = replace(counters, slot_swaps=swaps)
        return done

    async def loads(self) -> list[LoadRecord]:
        """Every load so far, for `load_events.write_loads`."""
        logs = {name: self.log_of(f"engine-{name}") for name in self.engine_names}
        return await asyncio.to_thread(read_loads, self.log_of("scheduler"), logs)

    async def clear(self, policies: Sequence[Policy] | None = None, *, keep_staged: bool = False) -> None:
        """Make everything, or these policies, cold on every engine, and wait until the scheduler knows it.

        With `keep_staged` the prepared copies stay on the engines' machine, as a stock server's adapter folder does.
        """
        digests = None if policies is None else [self._digests[policy] for policy in policies]
        await self.clear_digests(digests, keep_staged=keep_staged)

    async def clear_digests(self, digests: Sequence[str] | None, *, keep_staged: bool = False) -> None:
        """The same by digest."""
        wanted = None if digests is None else set(digests)
        # The leader's own epoch, so that it stays the leader, and a number that tells it of no command of its own.
        stamp = CommandStamp(await self.epoch(), 0)
        for name, state in (await self.engine_states()).items():
            engine = self.host(name)
            try:
                for resident in state.residents:
                    if wanted is None or resident.digest in wanted:
                        await engine.remove(stamp, resident.adapter_name, REMOVE_TIMEOUT_S)
                for digest in () if keep_staged else state.staged:
                    if wanted is None or digest in wanted:
                        await engine.unstage(stamp, digest)
            finally:
                await engine.close()
        await self._until(lambda: self._knows_none_of(wanted), "the scheduler's view of removals", SETTLE_TIMEOUT_S)

    async def epoch(self) -> int:
        """Of the scheduler that leads; 0 while nobody does."""
        seen = await self.snapshot()
        return 0 if seen is None else int(seen["epoch"])

    async def until_idle(self) -> None:
        """Wait until no load is under way and no sequence is running anywhere."""
        await self._until(self._is_idle, "an idle stack", SETTLE_TIMEOUT_S)

    async def _is_idle(self) -> bool:
        seen = await self.snapshot()
        states = await self.engine_states()
        return seen is not None and not seen["loads_total"] and not any(s.running + s.waiting for s in states.values())

    async def _knows_none_of(self, digests: set[str] | None) -> bool:
        seen = await self.snapshot()
        if seen is None:
            return False
        held = {r["revision"] for engine in seen["engines"] for r in engine["residents"]}
        return not (held if digests is None else held & digests)

    async def _is_ready(self) -> bool:
        beats = [self._beats.get(name) for name in self.engine_names]
        if not all(beat is not None and beat.state == "ready" for beat in beats):
            return False
        seen = await self.snapshot()
        return seen is not None and sum(e["is_usable"] for e in seen["engines"]) >= len(self.engine_names)

    async def _until(self, asks: Callable[[], Any], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not await asks():
            if time.monotonic() > deadline:
                raise EngineFailed(f"{what}: not within {timeout_s:.0f} s; see {self.state_dir / 'logs'}")
            await asyncio.sleep(POLL_S)

    def host(self, name: str) -> HostEngine:
        """The control side of an engine; close it. Raises: EngineFailed."""
        beat = self._beats.get(name)
        if beat is None:
            raise EngineFailed(f"engine {name} has not been heard of")
        return HostEngine(beat.control_url, secret_file(self.state_dir, "engine-control.key"))

    async def _connect(self) -> None:
        self._session = make_session()
        self._nats = await nats.connect(
            self.settings.nats_url, user=self.settings.nats_user, password=self.settings.nats_password
        )
        await self._nats.subscribe(EngineHeartbeat.subject_filter(), cb=self._on_beat)

    async def _on_beat(self, message: Msg) -> None:
        beat = EngineHeartbeat.model_validate_json(message.data)
        self._beats[beat.engine] = beat

    async def _make_keys(self) -> None:
        connection = await asyncpg.connect(self.settings.postgres_dsn)
        pepper = secret_file(self.state_dir, "pepper.key").encode()
        try:
            for tenant in self._tenants:
                async with connection.transaction():
                    self._keys[tenant] = (await create_key(connection, tenant, ["infer", "read"], pepper=pepper))[0]
        finally:
            await connection.close()

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._nats is not None:
            await self._nats.close()
        await asyncio.to_thread(down, self.state_dir)
        if self._owns_state_dir:
            await asyncio.to_thread(shutil.rmtree, self.state_dir, ignore_errors=True)
