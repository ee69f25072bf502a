"""How each side is disturbed while its streams run: attaches by command, and cold requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import aiohttp

from load.clients.records import Call, Target
from load.stack.policies import Policy
from load.waves.guard import Disturb
from openmint.engines.protocol import AttachRequest, CommandStamp
from openmint.errors import EngineFailed

if TYPE_CHECKING:
    from load.waves.arena import Arena

REQUEST = "Question {number} of many, which has about as many tokens as a short question has: what comes next? And why?"


class OurSide:
    """One engine of ours, commanded as the scheduler does it."""

    def __init__(self, arena: "Arena") -> None:
        self._stack = arena.ours
        self._extras: list[Policy] = []
        self._streams: list[Policy] = []
        self._engine = arena.ours.engine_names[0]
        self._host = arena.ours.host(self._engine)

    @property
    def target(self) -> Target:
        """Where streams go."""
        return self._stack

    async def prepare(self, streams: Sequence[Policy], extras: Sequence[Policy]) -> None:
        """Load the streams' policies, and stage the others."""
        self._streams, self._extras = list(streams), list(extras)
        await _load(self._stack, streams)
        stamp = await self._stamp()
        for policy in extras:
            await self._host.stage(stamp, self._stack.digest_of(policy))

    async def attaching(self, window: int) -> Disturb:
        """Attach the next of the prepared adapters."""
        stamp = await self._stamp()

        async def attach(number: int) -> None:
            policy = self._extras[number]
            request = AttachRequest(self._stack.digest_of(policy), policy.model)
            (result,) = await self._host.attach(stamp, [request])
            if result.error:
                raise EngineFailed(f"attach: {result.error}")

        return attach

    def asking(self, policies: Sequence[Policy]) -> Disturb:
        """Ask the next of the cold policies for one token."""
        return _asking(self._stack, policies)

    async def settle(self) -> None:
        """Everything but the streams' own policies is cold again, its files still prepared."""
        state = (await self._stack.engine_states())[self._engine]
        kept = {self._stack.digest_of(policy) for policy in self._streams}
        others = [resident.digest for resident in state.residents if resident.digest not in kept]
        await self._stack.clear_digests(others, keep_staged=True)

    async def close(self) -> None:
        """Let go of the engine's control port."""
        await self._host.close()

    async def _stamp(self) -> CommandStamp:
        return CommandStamp(await self._stack.epoch(), 0)


class StockSide:
    """One stock server. Its adapters are loaded under a new name each time: a name used again can kill it."""

    def __init__(self, arena: "Arena") -> None:
        self._arena = arena
        self._engine = arena.stock.engines[0]
        self._extras: list[Policy] = []
        self._names: list[str] = []

    @property
    def target(self) -> Target:
        """Where streams go."""
        return self._arena.routed

    async def prepare(self, streams: Sequence[Policy], extras: Sequence[Policy]) -> None:
        """Load the streams' policies."""
        self._extras = list(extras)
        await _load(self.target, streams)

    async def attaching(self, window: int) -> Disturb:
        """Load the next adapter by vLLM's own route."""

        async def load(number: int) -> None:
            folder = self._arena.adapters_folder / self._extras[number].stock_name
            name = f"{folder.name}-window-{window}"
            await self._post("load", {"lora_name": name, "lora_path": str(folder)})
            self._names.append(name)

        return load

    def asking(self, policies: Sequence[Policy]) -> Disturb:
        """Ask the next of the cold policies for one token."""
        return _asking(self.target, policies)

    async def settle(self) -> None:
        """Forget the names; the least recently used adapters leave by themselves."""
        names, self._names = self._names, []
        for name in names:
            await self._post("unload", {"lora_name": name})

    async def close(self) -> None:
        """Nothing is held."""

    async def _post(self, verb: str, body: dict[str, str]) -> None:
        session: aiohttp.ClientSession = self._arena.stock.session
        async with session.post(f"{self._engine.url}/v1/{verb}_lora_adapter", json=body) as answer:
            if answer.status != 200:
                raise EngineFailed(f"stock {verb}: {(await answer.text())[:300]}")


async def _load(target: Target, policies: Sequence[Policy]) -> None:
    for policy in policies:
        outcome = await target.ask(Call(policy, "One, two, three,", 2))
        if not outcome.is_answered:
            raise EngineFailed(f"{policy.model}: {outcome.error}")


def _asking(target: Target, policies: Sequence[Policy]) -> Disturb:
    async def ask(number: int) -> None:
        outcome = await target.ask(Call(policies[number], REQUEST.format(number=number), 1))
        if not outcome.is_answered:
            raise EngineFailed(f"{policies[number].model}: {outcome.error}")

    return ask
