"""From a trained revision to its first token: as an adapter, beside merged weights that an engine must take in.

One revision per round goes every way, so all meet the same noise: openmint's way, the merge with a reload in place on a
running stock vLLM, and the merge with a start of stock vLLM. The merge gets the best conditions: the base's weights lie
in memory, nothing is checked, signed, announced or sent anywhere, and stopping the former engine costs nothing.
"""

import asyncio
import secrets
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from load.report import Measurement, ReportBuilder
from load.scenarios.contract import Options, Scenario

if TYPE_CHECKING:
    import torch

    from load.handoff.adapter_way import HandedOff
    from load.handoff.answers import Answer
    from load.handoff.engine_processes import StockEngine

REPOSITORY = Path(__file__).parents[2]
BASE = "smollm2-135m"

RESTART_RATIO = 20.0
RELOAD_RATIO = 3.0
SAME_NATS = 1e-3
"""Two float32 engines on the same weights; sums in another order differ by 1e-5."""

OTHER_NATS = 0.1
"""Below this mean difference a revision would not be told from its base."""

FULL_ROUNDS, QUICK_ROUNDS = 5, 3
RESTART_EVERY = 2
"""A start costs most of a minute: three of five rounds have one, two of three."""

SETTLE_S = 2.0
"""Before anything is timed: a vLLM worker spins on its core for a second after a request."""


@dataclass(frozen=True, slots=True)
class Merged:
    """One revision as merged weights. Times are to the first token, merge and save not included."""

    merge_ms: float
    save_ms: float
    merged_bytes: int
    reload_ms: float
    reload_token_ms: float
    token: "Answer"
    proof: "Answer"
    restart_ms: float | None
    restart_token: "Answer | None"
    restart_proof: "Answer | None"
    exact_proof: "Answer"

    @property
    def in_place_ms(self) -> float:
        """Merge, save, reload, first token."""
        return self.merge_ms + self.save_ms + self.reload_ms + self.reload_token_ms


@dataclass(slots=True)
class Rounds:
    """Adapter and merged weights of the same revisions, in pairs."""

    base_proof: "Answer"
    pairs: "list[tuple[HandedOff, Merged]]" = field(default_factory=list)


def run(options: Options, report: ReportBuilder) -> None:
    """Rounds of all ways, then ratios pair by pair."""
    base_folder = REPOSITORY / ".openmint" / "bases" / BASE
    if not (base_folder / "config.json").exists():
        raise SystemExit(f"no base model {BASE}: run `make base`")
    # On the disk of the base and not in a folder of memory: syncing must cost what it costs.
    state_dir = REPOSITORY / ".openmint" / f"load-handoff-{secrets.token_hex(4)}"
    state_dir.mkdir()
    try:
        rounds = asyncio.run(_race(options, base_folder, state_dir))
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)
    tell(rounds, report)


async def _race(options: Options, base_folder: Path, state_dir: Path) -> Rounds:
    from load.handoff.adapter_way import open_adapter_way
    from load.handoff.answers import ask
    from load.handoff.engine_processes import OpenmintEngine, StockEngine
    from load.handoff.merged_weights import read_base_weights
    from load.handoff.revision import write_checkpoint
    from openmint.bases import read_base_folder

    base = read_base_folder(base_folder)
    weights = read_base_weights(base_folder)
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(OpenmintEngine(base_folder, state_dir))
        stock = await stack.enter_async_context(StockEngine(base_folder, state_dir / "stock.log"))
        way = await stack.enter_async_context(open_adapter_way(base, state_dir, ours))
        await ours.until_ready()
        await stock.first_answer()
        rounds = Rounds(await ask(ours.client, base.name, with_proof=True))
        count = QUICK_ROUNDS if options.is_quick else FULL_ROUNDS
        for number in range(count + 1):
            folder = state_dir / f"round-{number}"
            checkpoint = write_checkpoint(_made(folder) / "checkpoint.safetensors", base, options.seed + number)
            await asyncio.sleep(SETTLE_S)
            handed_off = await way.hand_off(checkpoint, _made(folder / "adapter"))
            is_warm_up = number == 0
            with_restart = not is_warm_up and (number - 1) % RESTART_EVERY == 0
            merged = await _merge_way(weights, base_folder, handed_off, folder, stock, with_restart)
            if not is_warm_up:
                rounds.pairs.append((handed_off, merged))
            shutil.rmtree(folder)
        return rounds


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def _merge_way(
    weights: "dict[str, torch.Tensor]",
    base_folder: Path,
    handed_off: "HandedOff",
    folder: Path,
    stock: "StockEngine",
    with_restart: bool,
) -> Merged:
    import torch

    from load.handoff.adapter_way import Laps
    from load.handoff.engine_processes import StockEngine
    from load.handoff.merged_weights import merge, prepare_folder, read_adapter, save

    adapter = read_adapter(handed_off.folder)
    target, exact = folder / "merged", folder / "merged-float32"
    for made in (target, exact):
        prepare_folder(base_folder, made)
    await asyncio.sleep(SETTLE_S)
    laps = Laps()
    merged = merge(weights, adapter)
    merge_ms = laps.lap_ms()
    merged_bytes = save(merged, target)
    save_ms = laps.lap_ms()
    await stock.reload(target)
    reload_ms = laps.lap_ms()
    token = await stock.ask()
    reload_token_ms = laps.lap_ms()
    proof = await stock.ask(with_proof=True)
    restart_ms: float | None = None
    restart_token = restart_proof = None
    if with_restart:
        await asyncio.sleep(SETTLE_S)
        laps.lap_ms()
        async with StockEngine(target, folder / "restart.log") as started:
            restart_token = await started.first_answer()
            restart_ms = laps.lap_ms()
            restart_proof = await started.ask(with_proof=True)
    save(merge(weights, adapter, torch.float32), exact)
    await stock.reload(exact)
    return Merged(
        merge_ms=merge_ms,
        save_ms=save_ms,
        merged_bytes=merged_bytes,
        reload_ms=reload_ms,
        reload_token_ms=reload_token_ms,
        restart_ms=restart_ms,
        token=token,
        proof=proof,
        restart_token=restart_token,
        restart_proof=restart_proof,
        exact_proof=await stock.ask(with_proof=True),
    )


def tell(rounds: Rounds, report: ReportBuilder) -> None:
    """What was found, into the report."""
    from load.handoff.adapter_way import PARTS

    adapters = [adapter for adapter, _ in rounds.pairs]
    merges = [merged for _, merged in rounds.pairs]
    for part in PARTS:
        report.measure(f"adapter: {part}", "ms", [one.parts_ms[part] for one in adapters])
    totals = [sum(one.parts_ms.values()) for one in adapters]
    report.measure("adapter: handoff, the sum of these", "ms", totals)
    report.measure("merge", "ms", [one.merge_ms for one in merges])
    report.measure("save", "ms", [one.save_ms for one in merges])
    report.measure("reload in place", "ms", [one.reload_ms for one in merges])
    report.measure("reload in place: first token", "ms", [one.reload_token_ms for one in merges])
    in_place = report.measure("merge + save + reload in place", "ms", [one.in_place_ms for one in merges])

    restarted = [(total, one, one.restart_ms) for total, one in zip(totals, merges, strict=True)]
    restarts = [(total, one, ms) for total, one, ms in restarted if ms is not None]
    report.measure("restart, to its first token", "ms", [ms for _, _, ms in restarts])
    restart = report.measure(
        "merge + save + restart", "ms", [one.merge_ms + one.save_ms + ms for _, one, ms in restarts]
    )
    adapter_bytes = report.measure("adapter, four files", "bytes", [float(one.adapter_bytes) for one in adapters])
    merged_bytes = report.measure("merged weights", "bytes", [float(one.merged_bytes) for one in merges])

    report.compare("merged bytes / adapter bytes", merged_bytes, adapter_bytes)
    by_restart = report.compare(
        "merge + save + restart / handoff", restart, _handoffs([total for total, _, _ in restarts])
    )
    by_reload = report.compare("merge + save + reload in place / handoff", in_place, _handoffs(totals))
    report.check_at_least(by_restart.name, by_restart.median, RESTART_RATIO)
    report.check_at_least(by_reload.name, by_reload.median, RELOAD_RATIO)
    _prove(rounds, report)
    report.note("every engine serves in float32 with the same cores and limits; the adapter is bfloat16, rank 8")
    report.note("weights are merged in float32 and saved in the base's dtype, which halves what a float32 save costs")
    report.note("both ways are synced to disk; the handoff has checks and signature, the merge has neither")
    report.note("the catalogue's transactions and the scheduler's decision are not in the handoff")
    report.note("the reload in place is vLLM's development route, whose requests in flight would mix two revisions")


def _prove(rounds: Rounds, report: ReportBuilder) -> None:
    """That each way's first token came from the revision of its round."""
    from load.handoff.answers import largest_difference, mean_difference

    base, pairs = rounds.base_proof.text_logprobs, rounds.pairs
    ours = [adapter.proof.text_logprobs for adapter, _ in pairs]
    reloaded = [merged.proof.text_logprobs for _, merged in pairs]
    changed = report.measure(
        "revision against base, mean of the text", "nats", [mean_difference(o, base) for o in ours]
    )
    report.check_at_least("adapter against base, the least", min(changed.samples), OTHER_NATS, "nats")
    least = min(mean_difference(row, base) for row in reloaded)
    report.check_at_least("reloaded engine against base, the least", least, OTHER_NATS, "nats")
    exact = [
        largest_difference(o, merged.exact_proof.text_logprobs) for o, (_, merged) in zip(ours, pairs, strict=True)
    ]
    report.check_at_most("adapter against a float32 merge, reloaded", max(exact), SAME_NATS, "nats, not timed")
    same = [
        largest_difference(merged.proof.text_logprobs, merged.restart_proof.text_logprobs)
        for _, merged in pairs
        if merged.restart_proof is not None
    ]
    report.check_at_most("reloaded engine against restarted one", max(same), SAME_NATS, "nats, one folder")
    timed = [(adapter.token, adapter.proof) for adapter, _ in pairs]
    timed += [(merged.token, merged.proof) for _, merged in pairs]
    timed += [(m.restart_token, m.restart_proof) for _, m in pairs if m.restart_token and m.restart_proof]
    tokens = [abs(token.token_logprob - proof.token_logprob) for token, proof in timed]
    report.check_at_most("timed tokens against those of the proofs", max(tokens), SAME_NATS, "nats")
    rounded = [largest_difference(a, b) for a, b in zip(ours, reloaded, strict=True)]
    report.measure("what the merge's rounding changes, at most", "nats", rounded)


def _handoffs(samples: list[float]) -> Measurement:
    """The handoffs of the rounds that a ratio is of."""
    return Measurement(name="handoff", unit="ms", samples=tuple(samples))


HANDOFF = Scenario("handoff", "a revision's way to its first token, beside merged weights and an engine reload", run)
