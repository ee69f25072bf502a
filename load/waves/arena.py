"""Both sides at once: an openmint stack and stock servers, on the same cores, over the same base and adapters.

Whoever is not asked is idle, so that rounds can alternate between the two and both meet the same noise.
"""

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from load.stack.engine_limits import EngineLimits
from load.stack.openmint_stack import OpenmintStack
from load.stack.policies import Policy, make_policies
from load.stock.routers import RoutedStock, round_robin
from load.stock.stock_engine import StockEngines

REPOSITORY = Path(__file__).parents[2]
DENSE_BASE = "smollm2-135m"
EXPERTS_BASE = "moe-8x64"
"""8 layers of 64 experts with random weights; its adapters have 18 MB."""


def dense_base() -> Path:
    """The folder of the dense base model. Raises: SystemExit when it is not there."""
    folder = REPOSITORY / ".openmint" / "bases" / DENSE_BASE
    if not (folder / "config.json").exists():
        raise SystemExit(f"no base model {DENSE_BASE}: run `make base`")
    return folder


def experts_base() -> Path:
    """The folder of the small base of experts, written when it is not there."""
    from openmint_engine_host.tiny_moe_base import write_tiny_moe_base

    folder = REPOSITORY / ".openmint" / "bases" / EXPERTS_BASE
    if not (folder / "config.json").exists():
        write_tiny_moe_base(folder, tokenizer_from=dense_base())
    return folder


BASES: dict[str, Callable[[], Path]] = {"dense": dense_base, "experts": experts_base}
"""The folders of the bases that are raced, by kind."""


class Arena:
    """Start it with `async with`: both sides answer when the block begins."""

    def __init__(
        self,
        base_folder: Path,
        engines: int,
        limits: EngineLimits | None = None,
        env: dict[str, str] | None = None,
        *,
        with_stock: bool = True,
    ) -> None:
        self._stack = AsyncExitStack()
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="openmint-arena-")))
        self.adapters_folder = self._scratch / "adapters"
        state_dir = self._scratch / "ours"
        state_dir.mkdir()
        self._scratch.chmod(0o711)
        limits = limits or EngineLimits()
        self.ours = OpenmintStack(base_folder, engines, limits, state_dir=state_dir, env=env)
        self.stock = StockEngines(
            base_folder, self.adapters_folder, engines, limits, log_dir=self._scratch / "stock-logs"
        )
        self._with_stock = with_stock
        self._made = 0

    @property
    def routed(self) -> RoutedStock:
        """The stock servers, asked by turns."""
        return round_robin(self.stock)

    async def __aenter__(self) -> Self:
        sides = [self.ours, self.stock] if self._with_stock else [self.ours]
        try:
            started = await asyncio.gather(
                *(self._stack.enter_async_context(side) for side in sides), return_exceptions=True
            )
            for outcome in started:
                if isinstance(outcome, BaseException):
                    raise outcome
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def fresh_policies(self, count: int) -> list[Policy]:
        """Policies that neither side has ever been asked for."""
        everyone = make_policies(self._made + count)
        fresh = everyone[self._made :]
        self._made += count
        await self.ours.seed(fresh)
        await asyncio.to_thread(self.ours.open_shelf().put_stock, fresh, self.adapters_folder)
        return fresh
