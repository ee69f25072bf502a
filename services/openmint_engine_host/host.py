"""One engine as the scheduler sees it: what it holds, and the commands that change that.

`EngineHost` is an `openmint.engines.protocol.Engine`; `control.py` puts it on the network.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import structlog

from openmint import tracing
from openmint.engines.protocol import (
    AttachRequest,
    AttachResult,
    CommandStamp,
    EngineCondition,
    EngineState,
    Examination,
    Resident,
    StageResult,
)
from openmint.errors import EngineFailed, NotFound
from openmint.events.serving import EngineHeartbeat
from openmint_engine_host import metrics
from openmint_engine_host.command_gate import CommandGate
from openmint_engine_host.heartbeats import ResidencyFeed
from openmint_engine_host.settings import EngineHostSettings
from openmint_engine_host.staging import Stager
from openmint_engine_host.supervisor import Boot, Supervisor
from openmint_engine_host.suspicions import Suspicions, examine

log = structlog.get_logger()

RESTART_DRAIN_S = 8.0
"""A suspect engine's neighbours may finish what they stream; their answers are watched until then."""


class EngineHost:
    """The control side of one real engine."""

    def __init__(
        self,
        settings: EngineHostSettings,
        base_digest: str,
        supervisor: Supervisor,
        stager: Callable[[Callable[[], set[str]]], Stager],
        feed: ResidencyFeed,
    ) -> None:
        self._settings = settings
        self._base_digest = base_digest
        self._supervisor = supervisor
        self._stager = stager(self.resident_digests)
        self._feed = feed
        self._gate = CommandGate()
        self._stage_ms: dict[str, float] = {}
        self._slots_taken = 0
        self._suspicions = Suspicions()
        self._examined = ""
        self._examining = asyncio.Lock()
        self._restarting: asyncio.Task[None] | None = None
        self.control_url = ""
        self.is_draining = False

    def resident_digests(self) -> set[str]:
        """Revisions that the engine holds, by its newest pulse and by attaches since."""
        boot = self._supervisor.boot
        return {str(a["digest"]) for a in boot.pulse.get("adapters", ())} if boot else set()

    async def on_ready(self, boot: Boot) -> None:
        """A boot answers: tell the bus."""
        await self._feed.joined(boot, self.control_url)

    async def on_lost(self, boot: Boot, reason: str) -> None:
        """A boot is gone: tell the bus."""
        await self._feed.left(boot, reason)

    async def state(self) -> EngineState:
        """What the engine holds now, by its worker's own list."""
        boot = self._supervisor.ready_boot()
        state = await boot.plugin.state()
        boot.pulse = state
        self._slots_taken = sum(name is not None for name in state["slots"])
        return EngineState(
            engine=self._settings.engine_name,
            base=self._settings.base,
            base_digest=self._base_digest,
            boot_id=boot.boot_id,
            pools=self._settings.pool_names,
            url=boot.url,
            condition=self._condition(state),
            build=boot.build,
            capabilities=boot.capabilities,
            capacity=boot.capacity,
            slots=boot.slots,
            max_rank=boot.module_table.max_rank,
            max_running=self._settings.max_num_seqs,
            list_version=state["list_version"],
            last_command=self._gate.last_command,
            running=state["running"],
            waiting=state["waiting"],
            residents=self._residents(state),
            staged=self._stager.digests(boot.layout),
            slot_adapters=tuple(state["slots"]),
        )

    async def stage(self, stamp: CommandStamp, digest: str) -> StageResult:
        """Fetch, verify and repack a revision."""
        self._gate.check(stamp)
        boot = self._supervisor.ready_boot()
        with tracing.begin("engine_host.stage", engine=self._settings.engine_name) as span:
            result = await self._stager.stage(digest, boot.module_table)
            span.note(
                was_staged=result.was_staged,
                fetch_ms=round(result.fetch_ms, 1),
                pack_ms=round(result.pack_ms, 1),
            )
        metrics.count_stage(result)
        if not result.was_staged:
            self._stage_ms[digest] = result.fetch_ms + result.pack_ms
            log.info("adapter.staged", revision=digest, stage_ms=round(self._stage_ms[digest], 1))
        return result

    async def attach(self, stamp: CommandStamp, requests: list[AttachRequest]) -> list[AttachResult]:
        """Make staged revisions resident, all in one gap between steps."""
        with self._gate.applying(stamp):
            boot = self._supervisor.ready_boot()
            began_ns = time.time_ns()
            answer = await boot.plugin.attach([self._attach_item(boot, request) for request in requests])
            boot.pulse = answer["pulse"]
            told: set[str] = set()
            results: list[AttachResult] = []
            for request, outcome in zip(requests, answer["results"], strict=True):
                name, attach_ms = outcome["name"], outcome["attach_ms"]
                results.append(AttachResult(request.digest, name, attach_ms, outcome["code"], outcome["error"]))
                metrics.count_attach(results[-1])
                tracing.begin(
                    "engine_host.attach",
                    parent=request.traceparent,
                    started_ns=began_ns,
                    engine=self._settings.engine_name,
                    attach_ms=round(attach_ms, 1),
                    batch=len(requests),
                ).end(outcome["code"])
                if outcome["code"] == "refused":
                    log.warning(
                        "adapter.refused", revision=request.digest, policy=request.label, detail=outcome["error"]
                    )
                elif outcome["is_new"] and name not in told:
                    told.add(name)
                    log.info("adapter.attached", adapter_name=name, attach_ms=round(attach_ms, 2))
                    stage_ms = self._stage_ms.pop(request.digest, 0.0)
                    await self._feed.resident(boot, request.digest, name, stage_ms, attach_ms)
            return results

    def _attach_item(self, boot: Boot, request: AttachRequest) -> dict[str, Any]:
        prepared = self._stager.find(request.digest, boot.layout)
        return {
            "digest": request.digest,
            "label": request.label,
            "path": str(prepared.folder) if prepared else "",
            "adapter_bytes": prepared.layout_bytes if prepared else 0,
        }

    async def remove(self, stamp: CommandStamp, adapter_name: str, timeout_s: float) -> bool:
        """Drain an adapter and free it; False when it was still in use after `timeout_s`."""
        with self._gate.applying(stamp):
            boot = self._supervisor.ready_boot()
            outcome = await boot.plugin.remove(adapter_name, timeout_s)
            boot.pulse = outcome["pulse"]
            if outcome["digest"]:
                log.info("adapter.removed", adapter_name=adapter_name)
                reason = "drained" if self.is_draining else "evicted"
                await self._feed.gone(boot, outcome["digest"], adapter_name, reason)
            return bool(outcome["removed"])

    async def unstage(self, stamp: CommandStamp, digest: str) -> None:
        """Drop the staged copy of a revision that is not resident."""
        self._gate.check(stamp)
        self._stager.drop(digest, self._supervisor.ready_boot().layout)

    async def restart(self, stamp: CommandStamp, reason: str) -> None:
        """Admit nothing more and start afresh once what is in flight has ended, or RESTART_DRAIN_S later."""
        self._gate.check(stamp)
        boot = self._supervisor.ready_boot()
        if self._restarting is not None and not self._restarting.done():
            return
        await boot.plugin.close_admission(reason)
        self._restarting = asyncio.create_task(self._restart_when_idle(boot, reason))

    async def _restart_when_idle(self, boot: Boot, reason: str) -> None:
        ends_s = asyncio.get_running_loop().time() + RESTART_DRAIN_S
        while asyncio.get_running_loop().time() < ends_s and await self.in_flight():
            await asyncio.sleep(0.1)
        if self._supervisor.boot is boot:
            log.warning("engine.restarting", boot_id=str(boot.boot_id), reason=reason)
            self._supervisor.restart(reason)

    async def examine(self, stamp: CommandStamp, request: AttachRequest) -> Examination:
        """Probe a staged revision alone; what comes out settles the suspicion, unless nothing was learnt."""
        self._gate.check(stamp)
        boot = self._supervisor.ready_boot()
        async with self._examining:
            self._examined = request.digest
            try:
                found = await examine(boot.plugin, self._attach_item(boot, request))
            finally:
                self._examined = ""
        log.warning("adapter.examined", revision=request.digest, policy=request.label, probes=found.probes,
                    failures=found.failures, is_clean=found.is_clean, detail=found.detail)  # fmt: skip
        if found.probes > 0:
            self._suspicions.settle(request.digest)
        return found

    async def probe(self, adapter_name: str) -> float:
        """Logprob in nats of one token by a resident adapter, or by the base. Raises: NotFound, EngineFailed."""
        boot = self._supervisor.ready_boot()
        if adapter_name in ("", self._settings.base):
            return await boot.plugin.probe("")
        if adapter_name not in {a["name"] for a in (await boot.plugin.pulse())["adapters"]}:
            raise NotFound(f"{adapter_name[:200]} is not on engine {self._settings.engine_name}")
        return await boot.plugin.probe(adapter_name)

    async def drain(self, reason: str) -> None:
        """Admit nothing more; what is in flight goes on."""
        self.is_draining = True
        boot = self._supervisor.boot
        if boot is not None:
            await boot.plugin.close_admission(reason)

    async def in_flight(self) -> int:
        """Sequences in flight; 0 when there is no engine."""
        try:
            return int((await self._supervisor.ready_boot().plugin.pulse())["in_flight"])
        except EngineFailed:
            return 0

    async def is_ready(self) -> bool:
        """Does the engine answer?"""
        return self._supervisor.boot is not None

    async def close(self) -> None:
        """Nothing is held open between calls."""

    def resident_list(self) -> dict[str, Any]:
        """What a gateway needs to send requests here, from the newest pulse. Raises: EngineFailed."""
        boot = self._supervisor.ready_boot()
        return {
            "engine": self._settings.engine_name,
            "base": self._settings.base,
            "boot_id": str(boot.boot_id),
            "pools": list(self._settings.pool_names),
            "url": boot.url,
            "list_version": boot.pulse["list_version"],
            "list_hash": boot.pulse["list_hash"],
            "last_command": self._gate.last_command,
            "residents": [asdict(resident) for resident in self._residents(boot.pulse)],
        }

    def figures(self) -> dict[str, Any] | None:
        """Counts and gauges for `metrics.EngineCollector`, from the newest pulse; None while it is down."""
        boot = self._supervisor.boot
        if boot is None or not boot.pulse:
            return None
        pulse = boot.pulse
        return {
            "residents": len(pulse["adapters"]),
            "capacity": boot.capacity,
            "slots": boot.slots,
            "slots_taken": self._slots_taken,
            "staged": len(self._stager.digests(boot.layout)),
            "running": pulse["running"],
            "waiting": pulse["waiting"],
            "admitted": pulse["admitted"],
            "refused": pulse["refused"],
        }

    def heartbeat(self) -> EngineHeartbeat | None:
        """The engine in one line, from its newest pulse; None while it is down."""
        boot = self._supervisor.boot
        if boot is None or not boot.pulse:
            return None
        pulse = boot.pulse
        self._suspicions.take_in(str(boot.boot_id), pulse)
        return EngineHeartbeat(
            base=self._settings.base,
            base_digest=self._base_digest,
            engine=self._settings.engine_name,
            boot_id=boot.boot_id,
            pools=list(self._settings.pool_names),
            url=boot.url,
            control_url=self.control_url,
            state=self._condition(pulse),
            capacity=boot.capacity,
            max_rank=boot.module_table.max_rank,
            list_version=pulse["list_version"],
            list_hash=pulse["list_hash"],
            last_command=self._gate.last_command,
            residents=len(pulse["adapters"]),
            staged=len(self._stager.digests(boot.layout)),
            running=pulse["running"],
            waiting=pulse["waiting"],
            max_running=self._settings.max_num_seqs,
            suspects=self._suspicions.digests(),
        )

    def _condition(self, pulse: dict[str, Any]) -> EngineCondition:
        if pulse.get("suspicion") and not self.is_draining:
            return "suspect"
        return "draining" if self.is_draining or pulse["closed_because"] else "ready"

    def _residents(self, pulse: dict[str, Any]) -> tuple[Resident, ...]:
        """All but a revision that is only here to be examined."""
        return tuple(resident for resident in residents_of(pulse) if resident.digest != self._examined)


def residents_of(pulse: dict[str, Any]) -> tuple[Resident, ...]:
    """The adapters of a pulse or a state."""
    return tuple(
        Resident(a["digest"], a["name"], a["in_flight"], a["adapter_bytes"], a["served"]) for a in pulse["adapters"]
    )
