"""Many requests at once against one engine: probes of the gate, rows of a scorer. Concurrency is bounded."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from openmint.endings import end
from openmint_evaluator.comparison import RowScore
from openmint_evaluator.encoded_rows import EncodedDataset
from openmint_evaluator.gate import Answers
from openmint_evaluator.probes import Probe
from openmint_evaluator.scorers import ScoredModel, Scorer

ResultT = TypeVar("ResultT")


async def ask_probes(adapter: ScoredModel, base: ScoredModel, probes: Sequence[Probe], concurrency: int) -> Answers:
    """Every probe to the adapter and to the base, alternating, so that their rows share the engine's batches."""
    calls: list[Callable[[], Awaitable[list[float]]]] = []
    for probe in probes:
        calls.append(_logprobs_call(adapter, probe))
        calls.append(_logprobs_call(base, probe))
    answers = await gather_bounded(calls, concurrency)
    return Answers(
        adapter=[value for part in answers[0::2] for value in part],
        base=[value for part in answers[1::2] for value in part],
    )


async def score_rows(model: ScoredModel, scorer: Scorer, dataset: EncodedDataset, concurrency: int) -> list[RowScore]:
    """Each row's score, in the order of the rows."""
    calls = [lambda row=row: scorer.score_row(row, dataset.labels, model) for row in dataset.rows]
    return await gather_bounded(calls, concurrency)


async def gather_bounded(calls: Sequence[Callable[[], Awaitable[ResultT]]], concurrency: int) -> list[ResultT]:
    """Results in the order of the calls; the first error cancels the rest and is raised itself."""
    if not calls:
        return []
    results: dict[int, ResultT] = {}
    waiting = iter(enumerate(calls))

    async def work() -> None:
        for index, call in waiting:
            results[index] = await call()

    workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(calls)))]
    try:
        await asyncio.gather(*workers)
    finally:
        await end(*workers)
    return [results[index] for index in range(len(calls))]


def _logprobs_call(model: ScoredModel, probe: Probe) -> Callable[[], Awaitable[list[float]]]:
    return lambda: model.prompt_logprobs(probe.token_ids)
