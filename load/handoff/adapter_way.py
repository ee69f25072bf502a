"""openmint's way, part by part: export, store, event, stage, attach, first token."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from load.handoff.answers import Answer, ask
from load.handoff.engine_processes import OpenmintEngine
from load.handoff.revision import Checkpoint
from openmint.adapters.inspection import Inspector
from openmint.adapters.revision_files import put_revision_folder
from openmint.adapters.signing import SigningKey, keys_folder
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint.bus.connection import Bus, connect_bus
from openmint.bus.provision import provision
from openmint.bus.tail import Tail
from openmint.embedded.nats_server import EmbeddedNats
from openmint.endings import end
from openmint.engines.protocol import AttachRequest, CommandStamp
from openmint.errors import EngineFailed
from openmint.events import RevisionExported
from openmint.identifiers import new_id
from openmint.settings import CommonSettings
from openmint_exporter.export import export_checkpoint

PARTS = ("export", "store", "event", "stage", "attach", "first token")
ADAPTER_DTYPE = "bfloat16"
EVENT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class HandedOff:
    """One revision that answers as an adapter. `parts_ms` has the names in PARTS, in their order."""

    folder: Path
    adapter_bytes: int
    parts_ms: dict[str, float]
    token: Answer
    proof: Answer


class Laps:
    """Milliseconds since the last lap."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()

    def lap_ms(self) -> float:
        """Ends one lap and begins the next."""
        last_s, self._last_s = self._last_s, time.perf_counter()
        return (self._last_s - last_s) * 1000


class AdapterWay:
    """Everything that stands ready before a revision comes: store, bus with a subscriber, engine."""

    def __init__(self, base: BaseFacts, state_dir: Path, bus: Bus, inspector: Inspector, engine: OpenmintEngine):
        self._base, self._bus, self._inspector, self._engine = base, bus, inspector, engine
        self._store = Store.open(f"file://{state_dir / 'store'}")
        self._key = SigningKey.load_or_create(keys_folder(state_dir))
        self._received: dict[UUID, asyncio.Event] = {}
        self._commands = 0

    def on_exported(self, fact: RevisionExported) -> None:
        """The subscriber's handler."""
        if fact.revision_id in self._received:
            self._received[fact.revision_id].set()

    async def hand_off(self, checkpoint: Checkpoint, folder: Path) -> HandedOff:
        """Bring one checkpoint to its first token; `folder` is empty and keeps the exported files."""
        base, engine = self._base, self._engine
        fact_id = new_id()
        heard = self._received[fact_id] = asyncio.Event()
        laps = Laps()
        signed = await export_checkpoint(
            checkpoint.path, checkpoint.sha256, base, ADAPTER_DTYPE, self._key, self._inspector, folder
        )
        export_ms = laps.lap_ms()
        await put_revision_folder(self._store, signed.digest, folder)
        store_ms = laps.lap_ms()
        fact = RevisionExported(
            tenant="load",
            revision_id=fact_id,
            policy="handoff",
            base=base.name,
            digest=signed.digest,
            number=1,
            adapter_bytes=signed.facts.adapter_bytes,
            export_ms=export_ms,
        )
        await self._bus.publish_fact(fact)
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            await heard.wait()
        event_ms = laps.lap_ms()
        await engine.control.stage(self._stamp(), signed.digest)
        stage_ms = laps.lap_ms()
        (attached,) = await engine.control.attach(self._stamp(), [AttachRequest(signed.digest, "load/handoff")])
        if attached.error:
            raise EngineFailed(f"attach: {attached.error}")
        attach_ms = laps.lap_ms()
        token = await ask(engine.client, attached.adapter_name)
        times = (export_ms, store_ms, event_ms, stage_ms, attach_ms, laps.lap_ms())
        proof = await ask(engine.client, attached.adapter_name, with_proof=True)
        return HandedOff(folder, _bytes_of(folder), dict(zip(PARTS, times, strict=True)), token, proof)

    def _stamp(self) -> CommandStamp:
        self._commands += 1
        return CommandStamp(1, self._commands)


@asynccontextmanager
async def open_adapter_way(base: BaseFacts, state_dir: Path, engine: OpenmintEngine) -> AsyncGenerator[AdapterWay]:
    """Start a bus of its own with one subscriber."""
    async with AsyncExitStack() as stack:
        nats = EmbeddedNats(state_dir)
        stack.callback(nats.stop)
        await asyncio.to_thread(nats.start)
        settings = CommonSettings(
            state_dir=state_dir, nats_url=nats.url, nats_user=nats.user, nats_password=nats.password
        )
        bus = await connect_bus(settings, "load-handoff")
        stack.push_async_callback(bus.close)
        await provision(bus)
        inspector = await stack.enter_async_context(Inspector())
        way = AdapterWay(base, state_dir, bus, inspector, engine)
        listener_bus = await connect_bus(settings, "load-subscriber")
        stack.push_async_callback(listener_bus.close)
        tail = Tail(listener_bus, [RevisionExported], way.on_exported, stream="EVENTS")
        following = asyncio.create_task(tail.run())
        stack.push_async_callback(end, following)
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            await tail.attached.wait()
        yield way


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
