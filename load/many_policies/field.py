"""The field: both sides up at once, so that contenders can alternate without an engine start in between."""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from load.clients.drivers import closed_loop, open_loop
from load.clients.records import Call, Outcome, Target
from load.many_policies.figures import figures_of
from load.many_policies.plan import (
    CALIBRATION_CLIENTS,
    CALIBRATION_S,
    CLOSED_CLIENTS,
    ENGINES,
    PAUSE_AFTER_REFUSAL_S,
    POLICIES,
    SETTINGS,
    SWITCHES,
    TENANTS,
    Contender,
    Load,
    PlannedRow,
)
from load.many_policies.processor_use import ProcessorUse
from load.many_policies.rows import Row
from load.stack.adapters import AdapterShelf
from load.stack.counters import total
from load.stack.engine_limits import EngineLimits
from load.stack.openmint_stack import OpenmintStack
from load.stack.policies import Policy, make_policies
from load.stock.routers import prefer_loaded, round_robin
from load.stock.stock_engine import StockEngines
from load.stock.vllm_router import VllmRouter
from load.workloads.arrivals import Arrival, burst_arrivals, client_arrivals
from load.workloads.crowd import Crowd, draw_crowd

MIN_CAPACITY_RPS = 1.0
"""Below it, a row would hold a handful of requests and show nothing."""

SETTLE_S = 2.0
"""Before a row: a vLLM worker spins on its core for a second after a request."""

CLOSED_STREAM_RPS = 60.0
"""How many entries of the stream are drawn for each second of closed clients: more than they can take."""


class Field:
    """Two openmint engines with their services, two stock engines, and the policies of both. A side is started when the
    first row needs it."""

    def __init__(self, base_folder: Path, scratch: Path, limits: EngineLimits, logs: Path | None = None) -> None:
        """With `logs`, those of our services are left there."""
        self._base_folder, self._scratch, self._limits, self._logs = base_folder, scratch, limits, logs
        self._policies = make_policies(POLICIES)
        self._vocabulary = int(json.loads((base_folder / "config.json").read_text())["vocab_size"])
        self._open = AsyncExitStack()
        self._ours: OpenmintStack | None = None
        self._without = ""
        self._stock: StockEngines | None = None
        self._router: VllmRouter | None = None
        self._asked: set[Policy] = set()

    async def close(self) -> None:
        """Stop everything."""
        try:
            await self._close_ours()
        finally:
            await self._open.aclose()

    async def capacity_rps(self, seed: int) -> float:
        """What stock engines answer when nothing needs loading: eight adapters each, all warm, every place taken."""
        stock = await self._stock_side()
        warm = self._policies[: ENGINES * self._limits.slots]
        crowd = Crowd(np.full(len(warm), 1 / len(warm)), np.ones(len(warm)), "published parameters")
        calls = self._calls(client_arrivals(crowd, 20_000, 1.0, np.random.default_rng(seed)))
        target = prefer_loaded(stock)
        await closed_loop(target, CALIBRATION_CLIENTS, calls, CALIBRATION_S / 2)
        started_s = time.monotonic()
        outcomes = await closed_loop(target, CALIBRATION_CLIENTS, calls, CALIBRATION_S)
        found_rps = figures_of(outcomes, started_s, CALIBRATION_S, is_closed=True).requests_rps
        if found_rps < MIN_CAPACITY_RPS:
            raise SystemExit(f"stock engines answer {found_rps:g} requests a second here: is something else running?")
        _say(f"measured capacity: {found_rps:.3g} req/s")
        return found_rps

    async def run(self, planned: PlannedRow, capacity_rps: float, window_s: float) -> Row:
        """Run one row from cold adapters."""
        target, side = await self._side(planned.contender)
        await self._make_cold(side)
        before = total(await side.counters())
        use = ProcessorUse(self._pids())
        started_s = time.monotonic()
        outcomes = await self._drive(target, planned, capacity_rps, window_s)
        figures = figures_of(outcomes, started_s, window_s, is_closed=planned.load.arriving == "closed")
        cores = use.cores()
        done = total(await side.counters()) - before
        thousands = max(1, sum(one.is_answered for one in outcomes)) / 1000
        return Row(
            base=planned.base,
            load=planned.load.name,
            contender=planned.contender.name,
            seed=planned.seed,
            loads_per_1000=done.attaches / thousands,
            slot_swaps_per_1000=done.slot_swaps / thousands,
            cpu_cores=cores,
            load_average=os.getloadavg()[0],
            **asdict(figures),
        )

    async def _make_cold(self, side: OpenmintStack | StockEngines) -> None:
        if isinstance(side, OpenmintStack):
            await side.until_idle()
            await side.clear()
        else:
            await side.clear(list(self._asked))
            self._asked.clear()
        await asyncio.sleep(SETTLE_S)

    async def _drive(self, target: Target, planned: PlannedRow, capacity_rps: float, window_s: float) -> list[Outcome]:
        load = planned.load
        arrivals = row_arrivals(load, planned.seed, capacity_rps, window_s)
        if load.arriving == "closed":
            calls = self._calls(arrivals)
            return await closed_loop(_FixedPause(target), CLOSED_CLIENTS, calls, window_s, PAUSE_AFTER_REFUSAL_S)
        due = [one.at_s for one in arrivals]
        return await open_loop(target, list(zip(due, self._calls(arrivals), strict=True)))

    def _calls(self, arrivals: Sequence[Arrival]) -> Iterator[Call]:
        for one in arrivals:
            self._asked.add(self._policies[one.policy])
            yield Call(self._policies[one.policy], tuple(one.prompt(self._vocabulary)), one.output_tokens)

    async def _side(self, contender: Contender) -> tuple[Target, OpenmintStack | StockEngines]:
        if contender.rule == "ours":
            ours = await self._our_side(contender.without)
            return ours, ours
        stock = await self._stock_side()
        if contender.rule == "hash":
            if self._router is None:
                self._router = await self._open.enter_async_context(VllmRouter(stock, self._scratch))
            return self._router if contender.cap is None else _Capped(self._router, contender.cap), stock
        rule = round_robin if contender.rule == "round-robin" else prefer_loaded
        return rule(stock, contender.cap), stock

    async def _our_side(self, without: str) -> OpenmintStack:
        if self._ours is not None and self._without == without:
            return self._ours
        await self._close_ours()
        env = SETTINGS | (SWITCHES[without] if without else {})
        ours = OpenmintStack(self._base_folder, ENGINES, self._limits, tenants=TENANTS, env=env)
        await ours.__aenter__()
        self._ours, self._without = ours, without
        await ours.seed(self._policies)
        _say(f"openmint is up{' without ' + without if without else ''}")
        return ours

    async def _close_ours(self) -> None:
        ours, self._ours = self._ours, None
        if ours is None:
            return
        if self._logs is not None:
            shutil.copytree(ours.state_dir / "logs", self._logs, dirs_exist_ok=True)
        await ours.__aexit__(None, None, None)

    async def _stock_side(self) -> StockEngines:
        if self._stock is None:
            folder = self._scratch / "stock-adapters"
            shelf = AdapterShelf.open(self._scratch, self._base_folder, rank=self._limits.max_rank)
            await asyncio.to_thread(shelf.put_stock, self._policies, folder)
            stock = StockEngines(self._base_folder, folder, ENGINES, self._limits, log_dir=self._scratch)
            self._stock = await self._open.enter_async_context(stock)
            _say("stock engines are up")
        return self._stock

    def _pids(self) -> dict[str, int]:
        if self._ours is None:
            return {}
        parts = ("gateway", "scheduler", *(f"engine-{name}" for name in self._ours.engine_names))
        return {part: self._ours.pid_of(part) for part in parts}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Capped:
    """A target with a cap: with so many calls in flight the next is refused at once."""

    def __init__(self, target: Target, cap: int) -> None:
        self._target, self._cap, self._in_flight = target, cap, 0

    @property
    def name(self) -> str:
        return f"{self._target.name}, cap {self._cap}"

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        if self._in_flight >= self._cap:
            now_s = time.monotonic()
            wanted_s = now_s if scheduled_s is None else scheduled_s
            return Outcome(call, wanted_s, now_s, None, now_s, (), 0, 429, error="overloaded: the cap")
        self._in_flight += 1
        try:
            return await self._target.ask(call, scheduled_s)
        finally:
            self._in_flight -= 1


class _FixedPause:
    """A target whose refusals name no time: all clients of a race pause for as long."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @property
    def name(self) -> str:
        return self._target.name

    async def ask(self, call: Call, scheduled_s: float | None = None) -> Outcome:
        return replace(await self._target.ask(call, scheduled_s), retry_after_s=None)


def row_arrivals(load: Load, seed: int, capacity_rps: float, window_s: float) -> list[Arrival]:
    """The same requests for every contender of a load and a seed."""
    crowd = draw_crowd(POLICIES, np.random.default_rng(seed))
    random = np.random.default_rng((seed, 1))
    if load.arriving == "closed":
        return client_arrivals(crowd, round(CLOSED_STREAM_RPS * window_s), CLOSED_STREAM_RPS, random)
    rate_rps = load.times * capacity_rps
    draw = burst_arrivals if load.arriving == "burst" else client_arrivals
    return draw(crowd, max(1, round(rate_rps * window_s)), rate_rps, random)
