"""Causal attention over packed rows, as an attention function that transformers models call.

Rows of many lengths lie end to end in one row of the batch, so that no linear ever computes padding. On the CPU each
sequence is attended by itself (a dense block mask measured 4 to 8 times slower); on a GPU the variable-length kernel
takes all of them at once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

ATTENTION_NAME = "openmint_packed"


def packed_causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sequence_lengths: Sequence[int] = (),
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each packed sequence and never across two.

    Shapes: query [1, heads, T, d], key and value [1, key_value_heads, T, d]; the answer is [1, T, heads, d]. The
    lengths add up to T.
    Raises: ValueError when the model asks for something that this function does not do.
    """
    if softcap is not None or dropout or attention_mask is not None:
        raise ValueError("packed attention does neither soft caps, nor dropout, nor masks")
    longest = max(sequence_lengths)
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"a sequence of {longest} tokens is longer than the model's window of {sliding_window}")
    if query.is_cuda:
        return _attend_by_kernel(query, key, value, sequence_lengths, scaling), None
    lengths = list(sequence_lengths)
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        for q, k, v in zip(
            query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True
        )
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _attend_by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int], scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]
    q_THd, k_THd, v_THd = (
        x[0].transpose(0, 1).contiguous()
        for x in (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))
    )
    bounds = torch.tensor([0, *lengths], device=query.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    out_THd = varlen_attn(q_THd, k_THd, v_THd, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0))
    assert isinstance(out_THd, torch.Tensor)
    return out_THd.unsqueeze(0)


def register() -> str:
    """Make the function known to transformers; returns the name to ask for."""
    AttentionInterface.register(ATTENTION_NAME, packed_causal_attention)
    return ATTENTION_NAME
