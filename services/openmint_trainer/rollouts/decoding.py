"""Sampling on the resident base: one token of every open stream per pass, each row through its own policy's adapter.

A stream is one request: the samples of some prompts by one policy, with a key-value cache of its own. What a stream
computes depends on its own rows alone (its segments, its caches, its own product with the head), so it gives the same
samples in any company. For tests and for where no engine is; an engine decodes many times faster.

Shape legend: T packed rows of a pass, N rows of a stream, L positions in its cache, K key-value heads, d head size (of
values it may be another).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from openmint.errors import BadRequest
from openmint_trainer.attention import attend_before, attend_seen
from openmint_trainer.executor import TrainedPolicy
from openmint_trainer.packing import padded
from openmint_trainer.resident_base import ResidentBase
from openmint_trainer.rollouts.contract import FinishReason, Sample, SampleRequest, derived_seed
from openmint_trainer.segmented_linear import Segment

ATTENTION_NAME = "openmint_decode"


@dataclass(slots=True, eq=False)
class Stream:
    """One request under way. Rows are prompt-major: `count` of the first prompt, then of the second."""

    key: Hashable
    policy: TrainedPolicy
    request: SampleRequest
    generators: list[torch.Generator]
    lengths_N: torch.Tensor
    """Positions of each row that are in the cache."""
    live: list[int]
    tokens: list[list[int]]
    logprobs: list[list[float]]
    reasons: list[FinishReason]
    keys: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    """By layer: [N, K, L, d]."""
    values: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    is_prefilled: bool = False

    @property
    def capacity(self) -> int:
        """Positions that a row may come to have."""
        return max(len(prompt) for prompt in self.request.prompts) + self.request.max_tokens

    @property
    def pass_rows(self) -> int:
        """Rows of its next pass: the prompts, each once, then a token of each row."""
        return len(self.live) if self.is_prefilled else sum(len(prompt) for prompt in self.request.prompts)

    def samples(self) -> list[Sample]:
        """What was sampled, once no row is live."""
        count = self.request.count
        return [
            Sample(row // count, tuple(self.tokens[row]), tuple(self.logprobs[row]), self.request.digest, reason)
            for row, reason in enumerate(self.reasons)
        ]


def open_stream(key: Hashable, policy: TrainedPolicy, request: SampleRequest) -> Stream:
    """A stream before its first pass. Each row draws from a generator of its own."""
    rows = len(request.prompts) * request.count
    seeds = [derived_seed(request.seed, row // request.count, row % request.count) for row in range(rows)]
    return Stream(
        key=key,
        policy=policy,
        request=request,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        lengths_N=torch.tensor([len(request.prompts[row // request.count]) for row in range(rows)]),
        live=list(range(rows)),
        tokens=[[] for _ in range(rows)],
        logprobs=[[] for _ in range(rows)],
        reasons=["length"] * rows,
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    stream: Stream
    start: int
    end: int


class MixedDecoder:
    """Holds the open streams and takes one pass at a time. Everything is called from the training thread."""

    def __init__(self, base: ResidentBase, end_token: int | None, max_pass_rows: int = 2048) -> None:
        AttentionInterface.register(ATTENTION_NAME, _cached_attention)
        self._base = base
        self._end_token = end_token
        self._max_pass_rows = max_pass_rows
        self._streams: list[Stream] = []

    @property
    def is_idle(self) -> bool:
        """No stream is open."""
        return not self._streams

    def open(self, stream: Stream) -> None:
        """Let a stream take part from the next pass on.

        Raises: BadRequest when its prompts are more than one pass can hold, or the base is one that runs row by row:
            what its layers keep of a sequence is not keys and values alone.
        """
        if not self._base.packs_rows:
            raise BadRequest(
                f"base {self._base.name} runs row by row here and can't be sampled by the trainer; start an engine",
                field="base",
            )
        if stream.pass_rows > self._max_pass_rows:
            raise BadRequest(
                f"a group's prompts have {stream.pass_rows} tokens, more than this trainer's {self._max_pass_rows}",
                field="dataset",
            )
        self._streams.append(stream)

    def close(self, belongs: Callable[[Stream], bool]) -> None:
        """Forget streams whose samples nobody wants any more."""
        self._streams = [stream for stream in self._streams if not belongs(stream)]

    @torch.no_grad()
    def advance(self) -> list[Stream]:
        """One token for every stream that finds room in the pass; returns those that are done."""
        chosen: list[_Placed] = []
        start = 0
        for stream in self._streams:
            if start + stream.pass_rows <= self._max_pass_rows:
                chosen.append(_Placed(stream, start, start + stream.pass_rows))
                start += stream.pass_rows
        if not chosen:
            return []
        hidden_TH = self._forward(chosen, start)
        for placed in chosen:
            self._sample(placed.stream, hidden_TH[placed.start : placed.end])
        done = [placed.stream for placed in chosen if not placed.stream.live]
        waiting = [s for s in self._streams if all(s is not placed.stream for placed in chosen)]
        # Those who found no room come first the next time.
        self._streams = [*waiting, *(placed.stream for placed in chosen if placed.stream.live)]
        return done

    def _forward(self, chosen: Sequence[_Placed], total: int) -> torch.Tensor:
        base = self._base
        tokens: list[int] = []
        positions: list[int] = []
        for placed in chosen:
            stream = placed.stream
            if stream.is_prefilled:
                tokens += [stream.tokens[row][-1] for row in stream.live]
                positions += [int(stream.lengths_N[row]) for row in stream.live]
            else:
                for prompt in stream.request.prompts:
                    tokens += prompt
                    positions += range(len(prompt))
        filler = padded(total) - total
        tokens_T = torch.tensor([*tokens, *[0] * filler], device=base.device)
        positions_T = torch.tensor([*positions, *[0] * filler], device=base.device)
        base.route.segments = [Segment(p.stream.policy.slot, p.start, p.end) for p in chosen]
        config = cast(PreTrainedModel, base.decoder).config
        former = config._attn_implementation
        config._attn_implementation = ATTENTION_NAME
        try:
            hidden_TH = base.decoder(
                inputs_embeds=base.embeddings(tokens_T[None]),
                position_ids=positions_T[None],
                placed_streams=chosen,
                use_cache=False,
            ).last_hidden_state[0]
        finally:
            config._attn_implementation = former
            base.route.segments = ()
        return hidden_TH

    def _sample(self, stream: Stream, hidden: torch.Tensor) -> None:
        if stream.is_prefilled:
            stream.lengths_N[stream.live] += 1
        else:
            ends = torch.tensor([len(prompt) for prompt in stream.request.prompts]).cumsum(0) - 1
            hidden = hidden[ends.repeat_interleave(stream.request.count).to(hidden.device)]
            stream.is_prefilled = True
        logprobs_NV = torch.log_softmax((hidden @ self._base.head_VH.t()).float(), dim=-1).cpu()
        probabilities_NV = logprobs_NV.exp()
        still: list[int] = []
        for i, row in enumerate(stream.live):
            token = int(torch.multinomial(probabilities_NV[i], 1, generator=stream.generators[row]))
            stream.tokens[row].append(token)
            stream.logprobs[row].append(float(logprobs_NV[i, token]))
            if token == self._end_token:
                stream.reasons[row] = "stop"
            elif len(stream.tokens[row]) < stream.request.max_tokens:
                still.append(row)
        stream.live = still


def _cached_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    placed_streams: Sequence[_Placed] = (),
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each row's own past, and add this pass to it.

    Shapes: query [1, heads, T, d], key and value [1, K, T, d]; the answer is [1, T, heads, d], 0 for the filler.
    Raises: ValueError when the model asks for something that this function does not do.
    """
    if softcap is not None or dropout or attention_mask is not None:
        raise ValueError("cached attention does neither soft caps, nor dropout, nor masks")
    layer = getattr(module, "layer_idx", None)
    assert isinstance(layer, int)
    out = query.new_zeros(query.shape[2], query.shape[1], value.shape[3])
    for placed in placed_streams:
        stream = placed.stream
        rows = slice(placed.start, placed.end)
        attend = _step if stream.is_prefilled else _fill
        parts = query[0, :, rows], key[0, :, rows], value[0, :, rows]
        out[rows] = attend(stream, layer, *parts, scaling, sliding_window, s_aux)
    return out[None], None


def _fill(
    stream: Stream,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The prompts, each once; its keys and values then stand in the cache of every row that continues it."""
    count = stream.request.count
    rows = len(stream.request.prompts) * count
    stream.keys[layer] = key.new_zeros(rows, key.shape[0], stream.capacity, key.shape[2])
    stream.values[layer] = value.new_zeros(rows, value.shape[0], stream.capacity, value.shape[2])
    attended: list[torch.Tensor] = []
    start = 0
    for number, prompt in enumerate(stream.request.prompts):
        end = start + len(prompt)
        q, k, v = query[None, :, start:end], key[None, :, start:end], value[None, :, start:end]
        attended.append(attend_before(q, k, v, scaling, window, sinks)[0])
        mine = slice(number * count, (number + 1) * count)
        stream.keys[layer][mine, :, : len(prompt)] = k
        stream.values[layer][mine, :, : len(prompt)] = v
        start = end
    return torch.cat(attended, dim=1).transpose(0, 1)


def _step(
    stream: Stream,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One token of each live row."""
    live = torch.tensor(stream.live, device=query.device)
    at = stream.lengths_N[stream.live].to(query.device)
    keys, values = stream.keys[layer], stream.values[layer]
    keys[live, :, at] = key.transpose(0, 1)
    values[live, :, at] = value.transpose(0, 1)
    longest = int(at.max()) + 1
    positions = torch.arange(longest, device=at.device)[None]
    seen_NL = positions <= at[:, None]
    if window is not None:
        seen_NL &= positions > at[:, None] - window
    q = query.transpose(0, 1)[:, :, None]
    k, v = keys[live, :, :longest], values[live, :, :longest]
    return attend_seen(q, k, v, seen_NL[:, None, None], scaling, sinks)[:, :, 0]
