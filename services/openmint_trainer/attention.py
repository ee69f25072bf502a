"""Causal attention over packed rows, as an attention function that transformers models call.

Rows of many lengths lie end to end in one row of the batch, so that no linear ever computes padding. On the CPU each
sequence is attended by itself (a dense block mask measured 4 to 8 times slower); on a GPU the variable-length kernel
takes all of them at once. Models that attend in a way that is not here are found at load and run row by row.

Shape legend: L tokens of one sequence, T packed tokens, d and e features of a head's keys and values.
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
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each packed sequence and never across two.

    A position sees itself and at most `sliding_window` - 1 before it. `s_aux` [heads] are attention sinks: each head's
    softmax has one more logit, of this size, whose value is nothing.
    Shapes: query and key [1, heads, T, d], value [1, heads, T, e], the latter two with the key-value heads; the answer
    is [1, T, heads, e]. The lengths add up to T; none means that T is one sequence.
    Raises: ValueError when the model asks for something that this function does not do.
    """
    if softcap is not None or dropout or attention_mask is not None:
        raise ValueError("packed attention does neither soft caps, nor dropout, nor masks")
    lengths = list(sequence_lengths) or [query.shape[2]]
    if query.is_cuda and s_aux is None:
        return _attend_by_kernel(query, key, value, lengths, scaling, sliding_window), None
    attended = [
        attend_before(q, k, v, scaling, sliding_window, s_aux)
        for q, k, v in zip(
            query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True
        )
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def attend_before(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Each position of a sequence over itself and what is before it, at most `window` - 1 positions back.

    Shapes: q [B, heads, L, d], k [B, K, L, d], v [B, K, L, e], sinks [heads]; the answer is [B, heads, L, e].
    """
    length = q.shape[2]
    is_grouped = q.shape[1] != k.shape[1]
    if sinks is None and (window is None or length <= window):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=is_grouped)
    seen_LL = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        seen_LL &= ~seen_LL.tril(-window)
    return attend_seen(q, k, v, seen_LL, scaling, sinks)


def attend_seen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    scaling: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention over what is seen: bool, broadcast to [B, heads, Q, L], for queries [B, heads, Q, d]."""
    is_grouped = q.shape[1] != k.shape[1]
    if sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=is_grouped)
    # A sink is one more key that is zero, so that its logit is what the mask adds, with a value that is zero.
    length = k.shape[2]
    bias = torch.zeros(q.shape[0], q.shape[1], q.shape[2], length + 1, dtype=q.dtype, device=q.device)
    bias[..., :length].masked_fill_(~seen, float("-inf"))
    bias[..., length] = sinks.to(q.dtype)[:, None]
    return F.scaled_dot_product_attention(
        q, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), attn_mask=bias, scale=scaling, enable_gqa=is_grouped
    )


def _attend_by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]
    value_features = value.shape[-1]
    # The kernel knows one size of head: values that are narrower than keys are padded with nothing.
    padded_value = F.pad(value, (0, key.shape[-1] - value_features))
    q_THd, k_THd, v_THd = (
        x[0].transpose(0, 1).contiguous()
        for x in (query, key.repeat_interleave(repeats, 1), padded_value.repeat_interleave(repeats, 1))
    )
    bounds = torch.tensor([0, *lengths], device=query.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    before = -1 if window is None else window - 1
    out_THd = varlen_attn(q_THd, k_THd, v_THd, bounds, bounds, longest, longest, scale=scaling, window_size=(before, 0))
    assert isinstance(out_THd, torch.Tensor)
    return out_THd[..., :value_features].unsqueeze(0)


def register() -> str:
    """Make the function known to transformers; returns the name to ask for."""
    AttentionInterface.register(ATTENTION_NAME, packed_causal_attention)
    return ATTENTION_NAME
