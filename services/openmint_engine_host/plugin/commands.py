"""`/openmint/*`: what the engine host tells the plug-in, in the API process.

A name is made here for every load and never used again in a boot: vLLM compares adapters by name, and one that comes
back with another id kills its step loop.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, cast

from openmint_engine_host.plugin.admission import Admission, ResidentAdapter
from openmint_engine_host.plugin.answers import AnswerWatch
from openmint_engine_host.plugin.versions import installed_version
from openmint_engine_host.plugin.versions.contract import Load, VersionModule

FIRST_ADAPTER_ID = 1_000
"""Above the ids that vLLM gives to its warm-up adapters."""


class CommandRefused(Exception):
    """The command can't be carried out; the engine goes on."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class Commands:
    """The commands of one boot."""

    def __init__(self, admission: Admission, version: VersionModule, boot_id: str, watch: AnswerWatch) -> None:
        self._admission = admission
        self._watch = watch
        self._version = version
        self._boot_id = boot_id
        self._ids = itertools.count(FIRST_ADAPTER_ID)
        self._capacity = 0
        self._worker_lock = asyncio.Lock()
        """Held while the worker's list and ours are changed together."""
        self._routes: dict[tuple[str, str], Callable[[dict[str, Any], object], Awaitable[dict[str, Any]]]] = {
            ("GET", "pulse"): self._pulse,
            ("GET", "state"): self._state,
            ("POST", "start"): self._start,
            ("POST", "attach"): self._attach,
            ("POST", "remove"): self._remove,
            ("POST", "probe"): self._probe,
            ("POST", "cleanse"): self._cleanse,
            ("POST", "close"): self._close,
            ("POST", "open"): self._open,
        }

    async def run(self, method: str, name: str, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Carry out one command. Raises: CommandRefused."""
        route = self._routes.get((method, name))
        if route is None:
            raise CommandRefused(404, "not_found", f"there is no command {method} {name[:40]!r}")
        try:
            return await route(body, api)
        except (KeyError, TypeError, ValueError) as error:
            raise CommandRefused(400, "bad_request", f"{name}: {type(error).__name__}: {error}") from error

    async def _pulse(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """What the front itself knows; answers while the worker is busy."""
        admission, suspicion = self._admission, self._watch.suspicion
        running = min(admission.in_flight, admission.max_running)
        return {
            "boot_id": self._boot_id,
            "closed_because": admission.closed_because,
            "suspicion": asdict(suspicion) if suspicion else None,
            "in_flight": admission.in_flight,
            "running": running,
            "waiting": admission.in_flight - running,
            "limit": admission.limit,
            "admitted": admission.admitted,
            "refused": dict(admission.refused),
            "list_version": admission.list_version,
            "list_hash": admission.list_hash(),
            "adapters": [
                {
                    "name": a.name,
                    "digest": a.digest,
                    "in_flight": a.in_flight,
                    "served": a.served,
                    "is_draining": a.is_draining,
                    "adapter_bytes": a.adapter_bytes,
                }
                for a in admission.adapters()
            ],
        }

    async def _state(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """The pulse, restricted to adapters that the worker itself lists, and its slots by name."""
        async with self._worker_lock:
            residency = await self._residency(api)
            pulse = await self._pulse(body, api)
            cached = set(residency["cached"])
            names = {a.adapter_id: a.name for a in self._admission.adapters()}
            held = {name for adapter_id, name in names.items() if adapter_id in cached}
        return {
            **pulse,
            "adapters": [a for a in pulse["adapters"] if a["name"] in held],
            "lost": sorted(set(names.values()) - held),
            "unknown_ids": sorted(cached - set(names)),
            "slots": [names.get(adapter_id) for adapter_id in residency["slots"]],
            "capacity": residency["capacity"],
            "worker_peak_bytes": residency["peak_bytes"],
        }

    async def _start(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Test the LoRA kernels and one token of the base (which also warms vLLM up); admit requests from here on."""
        fault = await self._version.call_worker(api, "openmint_self_test")
        if not fault and not math.isfinite(logprob := await self._version.probe(api, None)):
            fault = f"the base answers {logprob}"
        if fault:
            raise CommandRefused(500, "self_test_failed", str(fault))
        table = await self._version.call_worker(api, "openmint_module_table")
        residency = await self._residency(api)
        self._capacity = int(residency["capacity"])
        self._admission.closed_because = ""
        return {
            "boot_id": self._boot_id,
            "vllm_version": installed_version(),
            "capabilities": sorted(self._version.capabilities),
            "module_table": table,
            "capacity": residency["capacity"],
            "slots": len(residency["slots"]),
        }

    async def _attach(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Make prepared files resident in one gap between steps; one that fails does not stop the others.

        An empty `path` means that nothing is staged. `code` is empty, `not_staged`, `full` or `refused`. The answer
        carries a pulse, which saves its asker a round trip.
        """
        async with self._worker_lock:
            results: list[dict[str, Any]] = []
            fresh: dict[str, tuple[dict[str, Any], ResidentAdapter]] = {}
            for item in body["adapters"]:
                digest = item["digest"]
                if digest in fresh:
                    results.append(fresh[digest][0])
                    continue
                present = self._admission.find_digest(digest)
                result = {"digest": digest, "name": "", "attach_ms": 0.0, "code": "", "error": "", "is_new": False}
                results.append(result)
                held = sum(1 for _ in self._admission.adapters()) + len(fresh)
                if present is not None:
                    result["name"] = present.name
                elif not item["path"]:
                    result.update({"code": "not_staged", "error": "it is not staged on this engine"})
                elif held >= self._capacity:
                    result.update({"code": "full", "error": f"the engine holds {held} of {self._capacity}"})
                else:
                    fresh[digest] = (result, self._new_adapter(item))
            await self._attach_fresh(list(fresh.values()), api)
        return {"results": results, "pulse": await self._pulse(body, api)}

    def _new_adapter(self, item: dict[str, Any]) -> ResidentAdapter:
        digest, adapter_id = item["digest"], next(self._ids)
        name = f"{item['label']}@{digest.removeprefix('sha256:')[:12]}#{adapter_id}"
        return ResidentAdapter(name, digest, adapter_id, item["path"], int(item["adapter_bytes"]))

    async def _attach_fresh(self, fresh: list[tuple[dict[str, Any], ResidentAdapter]], api: object) -> None:
        if not fresh:
            return
        loads = [[adapter.name, adapter.adapter_id, adapter.path] for _, adapter in fresh]
        outcomes = cast(Any, await self._version.call_worker(api, "openmint_attach", loads))
        for (result, adapter), outcome in zip(fresh, outcomes, strict=True):
            result["attach_ms"] = outcome["attach_ms"]
            if outcome["error"]:
                result.update({"code": "refused", "error": outcome["error"]})
                continue
            result.update({"name": adapter.name, "is_new": True})
            self._version.register_name(api, Load(adapter.name, adapter.adapter_id, adapter.path))
            self._admission.add(adapter)

    async def _remove(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Drain an adapter, free it in the worker and check that it is gone. `removed` false: still in use."""
        adapter = self._admission.find(body["name"])
        removed = adapter is None or await self._remove_adapter(adapter, float(body.get("timeout_s", 30)), api)
        digest = adapter.digest if adapter and removed else ""
        return {"removed": removed, "digest": digest, "pulse": await self._pulse(body, api)}

    async def _remove_adapter(self, adapter: ResidentAdapter, timeout_s: float, api: object) -> bool:
        adapter.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await adapter.idle.wait()
        except TimeoutError:
            adapter.is_draining = False
            return False
        async with self._worker_lock:
            # Another remover may have given up meanwhile and let requests in again.
            adapter.is_draining = True
            if adapter.in_flight:
                adapter.is_draining = False
                return False
            answer = cast(Any, await self._version.call_worker(api, "openmint_remove", adapter.adapter_id))
            if adapter.adapter_id in answer["residency"]["cached"]:
                adapter.is_draining = False
                raise CommandRefused(500, "still_resident", f"the worker still lists {adapter.name}")
            self._version.forget_name(api, adapter.name)
            self._admission.discard(adapter.name)
        return True

    async def _probe(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """One token by an adapter, or by the base where `name` is empty; an error unless its logprob is a number."""
        adapter = self._admission.find(body.get("name") or "")
        if body.get("name") and adapter is None:
            raise CommandRefused(404, "absent", f"{body['name']} is not on this engine")
        load = adapter and Load(adapter.name, adapter.adapter_id, adapter.path)
        self._admission.hold(adapter)
        try:
            logprob = await self._version.probe(api, load)
        finally:
            self._admission.let_go(adapter)
        if not math.isfinite(logprob):
            self._watch.note(body.get("name") or "", is_finite=False)
            raise CommandRefused(502, "not_finite", f"{body.get('name') or 'the base'} answers {logprob}")
        return {"logprob": logprob}

    async def look_into(self, name: str, api: object) -> None:
        """Probe a model whose answer was odd, and the base, which shares its cache; the watch notes what is wrong."""
        for asked in dict.fromkeys((name, "")):
            with contextlib.suppress(CommandRefused):
                await self._probe({"name": asked}, api)

    async def _cleanse(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Forget every key and value of former requests; only while nothing is in flight."""
        if self._admission.in_flight:
            raise CommandRefused(409, "in_use", f"{self._admission.in_flight} sequences are in flight")
        async with self._worker_lock:
            await self._version.cleanse(api)
        return {}

    async def _close(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Admit nothing more, with a reason; what is in flight goes on. `is_examining`: suspects will be probed."""
        self._admission.closed_because = str(body.get("reason") or "the engine is draining")
        self._watch.is_examining = bool(body.get("is_examining"))
        return {}

    async def _open(self, body: dict[str, Any], api: object) -> dict[str, Any]:
        """Admit again, unless the engine is suspect."""
        self._watch.is_examining = False
        suspicion = self._watch.suspicion
        self._admission.closed_because = f"the engine is suspect: {suspicion.reason}" if suspicion else ""
        return {}

    async def _residency(self, api: object) -> dict[str, Any]:
        return cast(dict[str, Any], await self._version.call_worker(api, "openmint_residency"))
