"""What this engine is suspected of, and the examination that clears or convicts a revision.

Kept over restarts of the engine until each suspect has been examined: the scheduler may change meanwhile, and whoever
leads next reads the list from the heartbeats.
"""

import asyncio
from typing import Any

import structlog

from openmint.engines.protocol import Examination
from openmint_engine_host.plugin_client import AnswerNotFinite, PluginClient

log = structlog.get_logger()

MAX_SUSPECTS = 64
"""More than an engine has in flight; what comes beyond is not noted."""

PROBES = 2
"""A revision is condemned for what happens twice, each time on a cleansed engine."""

IDLE_WAIT_S = 15.0
"""For what is in flight when an examination begins."""

POLL_S = 0.05


class Suspicions:
    """The revisions under suspicion on this engine, oldest first."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._seen: str = ""

    def take_in(self, boot_id: str, pulse: dict[str, Any]) -> None:
        """Note what a pulse tells; a boot tells the same until it ends."""
        told = pulse.get("suspicion")
        if told is None or boot_id == self._seen:
            return
        self._seen = boot_id
        log.warning(
            "engine.suspect", boot_id=boot_id, reason=told["reason"], suspects=told["digests"],
            in_flight=told["in_flight"],
        )  # fmt: skip
        for digest in told["digests"]:
            if len(self._digests) < MAX_SUSPECTS:
                self._digests.setdefault(digest, told["reason"])

    def digests(self) -> list[str]:
        """Those still to be examined."""
        return list(self._digests)

    def settle(self, digest: str) -> None:
        """It was examined, whatever came out."""
        self._digests.pop(digest, None)


async def examine(plugin: PluginClient, item: dict[str, Any]) -> Examination:
    """Attach one prepared revision to an idle engine, probe it, and leave no trace of it. Raises: EngineFailed.

    Each probe stands between two of the base, on zeroed caches, so that what fails is the revision and nothing else.
    """
    digest = str(item["digest"])
    await plugin.close_admission("a suspect is examined", is_examining=True)
    try:
        if not await _is_idle(plugin):
            return Examination(digest, 0, 0, True, "requests in flight did not end")
        if (fault := await _fault(plugin, "")) is not None:
            return Examination(digest, 0, 0, False, f"the base itself fails: {fault}")
        outcome = (await plugin.attach([item]))["results"][0]
        if outcome["code"]:
            return Examination(digest, 0, 0, True, f"{outcome['code']}: {outcome['error']}")
        failures: list[str] = []
        probes = 0
        for _ in range(PROBES):
            probes += 1
            if (fault := await _fault(plugin, outcome["name"])) is not None:
                failures.append(fault)
            await plugin.cleanse()
            if await _fault(plugin, "") is not None:
                return Examination(digest, probes, len(failures), False, "; ".join(failures) or "the base fails now")
        await plugin.remove(outcome["name"], 1.0)
        return Examination(digest, probes, len(failures), True, "; ".join(dict.fromkeys(failures)))
    finally:
        await plugin.open_admission()


async def _is_idle(plugin: PluginClient) -> bool:
    try:
        async with asyncio.timeout(IDLE_WAIT_S):
            while (await plugin.pulse())["in_flight"]:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    return True


async def _fault(plugin: PluginClient, name: str) -> str | None:
    """What is wrong with one token by this model; None when it is a number. Raises: EngineFailed when unanswered."""
    try:
        await plugin.probe(name)
    except AnswerNotFinite as error:
        return error.detail
    return None
