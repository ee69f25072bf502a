"""Mean nats per completion token; lower is better."""

from collections.abc import Sequence

from openmint_evaluator.comparison import RowScore
from openmint_evaluator.encoded_rows import EncodedRow
from openmint_evaluator.scorers.contract import ScoredModel, Scorer


async def score_row(row: EncodedRow, labels: Sequence[tuple[int, ...]], model: ScoredModel) -> RowScore:
    """Nats of the row's completion over its number of tokens. Labels play no part."""
    logprobs = await model.prompt_logprobs((*row.prompt_ids, *row.completion_ids))
    count = len(row.completion_ids)
    return RowScore(-sum(logprobs[-count:]), float(count))


LOSS = Scorer(name="loss", unit="nats per completion token", higher_is_better=False, score_row=score_row)
