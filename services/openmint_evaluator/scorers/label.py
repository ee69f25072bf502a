"""Share of rows whose completion is the likelier of the labels."""

from collections.abc import Sequence

from openmint_evaluator.comparison import RowScore
from openmint_evaluator.encoded_rows import EncodedRow
from openmint_evaluator.scorers.contract import ScoredModel, Scorer


async def score_row(row: EncodedRow, labels: Sequence[tuple[int, ...]], model: ScoredModel) -> RowScore:
    """1 when the model prefers the row's own label, else 0.

    One constrained request when the labels' first tokens differ; else each label's whole continuation is scored.
    """
    first_tokens = [label[0] for label in labels]
    if len(set(first_tokens)) == len(first_tokens):
        chosen = first_tokens.index(await model.choose_token(row.prompt_ids, first_tokens))
    else:
        chosen = await _likeliest_continuation(row.prompt_ids, labels, model)
    return RowScore(1.0 if chosen == row.label else 0.0)


async def _likeliest_continuation(
    prompt_ids: Sequence[int], labels: Sequence[tuple[int, ...]], model: ScoredModel
) -> int:
    totals: list[float] = []
    for label in labels:
        logprobs = await model.prompt_logprobs((*prompt_ids, *label))
        totals.append(sum(logprobs[-len(label) :]))
    return max(range(len(totals)), key=totals.__getitem__)


LABEL = Scorer(name="label", unit="share of rows right", higher_is_better=True, score_row=score_row)
