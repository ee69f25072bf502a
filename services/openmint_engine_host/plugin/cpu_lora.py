"""LoRA for a mixed batch on CPU, in plain torch: the repair of stock vLLM's CPU kernels.

Stock kernels take row index -1 (a row of the base) for the last slot, so that base rows beside an adapter get another
adapter's weights, and they gather a full padded copy of A and B for every token. Here rows are grouped by slot and
rows of the base are never touched. Can go when vLLM's CPU kernels skip rows without an adapter.

Legend: T tokens, I in, O out, R rank (padded to the engine's maximum), S slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

GATHER_BELOW_ROWS = 8
"""Mean rows per adapter under which one batched product of gathered weights beats a loop (measured at 8 streams with
8 adapters: 8 ms of CPU per token against 12)."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one adapter: a range where they lie together, else their indices."""

    slot: int
    span: slice | None
    rows_N: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which rows of a batch take which adapter. With `gather_rows_N` set, all are done in one batched product."""

    groups: tuple[Group, ...] = ()
    gather_rows_N: torch.Tensor | None = None
    gather_slots_N: torch.Tensor | None = None


def group_rows(slot_of_row: Sequence[int]) -> Grouping:
    """Group the rows of a batch by slot; -1 is a row of the base and is left out."""
    runs: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for row in range(1, len(slot_of_row) + 1):
        if row == len(slot_of_row) or slot_of_row[row] != slot_of_row[start]:
            if slot_of_row[start] >= 0:
                runs.setdefault(slot_of_row[start], []).append((start, row))
            start = row
    groups = tuple(_group(slot, spans) for slot, spans in runs.items())
    count = sum(end - begin for spans in runs.values() for begin, end in spans)
    if len(groups) > 1 and count < GATHER_BELOW_ROWS * len(groups):
        rows = [row for row, slot in enumerate(slot_of_row) if slot >= 0]
        slots = [slot_of_row[row] for row in rows]
        return Grouping(groups, torch.tensor(rows), torch.tensor(slots))
    return Grouping(groups)


def _group(slot: int, spans: list[tuple[int, int]]) -> Group:
    if len(spans) == 1:
        return Group(slot, slice(*spans[0]), None)
    return Group(slot, None, torch.cat([torch.arange(begin, end) for begin, end in spans]))


def add_lora(
    y_TO: torch.Tensor,
    x_TI: torch.Tensor,
    a_stacked: Sequence[torch.Tensor],
    b_stacked: Sequence[torch.Tensor],
    scale: float,
    output_slices: Sequence[int],
    grouping: Grouping,
) -> None:
    """y[row, slice] += x[row] A_slot^T B_slot^T * scale for every row that has an adapter, in place.

    Shapes: each of `a_stacked` is [S, 1, R, I], each of `b_stacked` [S, 1, O_slice, R].
    """
    offset = 0
    for a_S1RI, b_S1OR, size in zip(a_stacked, b_stacked, output_slices, strict=True):
        y_slice = y_TO[:, offset : offset + size]
        if grouping.gather_rows_N is not None and grouping.gather_slots_N is not None:
            x_N1I = x_TI[grouping.gather_rows_N].unsqueeze(1)
            h_N1R = torch.bmm(x_N1I, a_S1RI[grouping.gather_slots_N, 0].transpose(1, 2))
            o_NO = torch.bmm(h_N1R, b_S1OR[grouping.gather_slots_N, 0].transpose(1, 2)).squeeze(1)
            y_slice.index_add_(0, grouping.gather_rows_N, o_NO, alpha=scale)
        else:
            for group in grouping.groups:
                _add_group(y_slice, x_TI, a_S1RI[group.slot, 0], b_S1OR[group.slot, 0], scale, group)
        offset += size


def _add_group(
    y_TO: torch.Tensor, x_TI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float, group: Group
) -> None:
    if group.span is not None:
        y_TO[group.span].addmm_(x_TI[group.span] @ a_RI.t(), b_OR.t(), alpha=scale)
    elif group.rows_N is not None:
        y_TO.index_add_(0, group.rows_N, (x_TI[group.rows_N] @ a_RI.t()) @ b_OR.t(), alpha=scale)
