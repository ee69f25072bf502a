"""From rows and what the base made of them to what a loss reads: only the positions that it looks at, end to end.

Shape legend: T tokens of the rows, N used positions of them, H hidden, V vocabulary.
"""

from collections.abc import Sequence

import torch

from openmint.errors import BadRequest
from openmint_trainer.logprobs import target_logprobs
from openmint_trainer.losses import LossInputs
from openmint_trainer.rows import TOKEN_VALUES, Row


def make_inputs(rows: Sequence[Row], hidden_TH: torch.Tensor, head_VH: torch.Tensor) -> LossInputs:
    """The inputs of one policy's rows, with gradient to `hidden_TH`.

    Raises: BadRequest when some of the rows carry a tensor that others lack, or differ in targets per position.
    """
    device = hidden_TH.device
    if len({row.targets.shape[1:] for row in rows}) > 1:
        raise BadRequest("rows of one batch have different numbers of targets per position", field="dataset")
    used_by_row = [row.used_positions() for row in rows]
    used = torch.cat(used_by_row).nonzero()[:, 0].to(device)
    targets = torch.cat([row.targets for row in rows]).to(device)
    weights = torch.cat([row.weights for row in rows]).to(device)
    optional = {name: _values(rows, name, used) for name in TOKEN_VALUES}
    return LossInputs(
        logprobs=target_logprobs(hidden_TH.index_select(0, used), head_VH, targets[used]),
        weights=weights[used],
        rows=tuple(int(u.sum()) for u in used_by_row),
        **optional,
    )


def _values(rows: Sequence[Row], name: str, used: torch.Tensor) -> torch.Tensor | None:
    found: list[torch.Tensor] = [values for row in rows if (values := getattr(row, name)) is not None]
    if not found:
        return None
    if len(found) < len(rows):
        raise BadRequest(f"{len(rows) - len(found)} of {len(rows)} rows have no {name}", field="dataset")
    return torch.cat(found).to(used.device)[used]
