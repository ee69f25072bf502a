"""What a base must show when it is loaded: that our way through it gives what its own way gives.

Before a model is changed, a few rows go through it one at a time by its own attention. Afterwards the same rows must
come out the same when they are packed behind others; a model whose attention, convolutions or states reach across
packed rows fails this and is then run row by row, which must pass.
"""

from collections.abc import Callable, Sequence

import torch

DRAWS = 3
"""A leak between rows shows in every draw. Rounding that sends a token to another expert shows in few, so the best
draw counts."""

MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference at a position, relative to the size of its hidden state. Measured on a base of 135M and on one of
8 layers with 64 experts, in either dtype: up to 1e-6 as it should be, 0.87 and above where rows see each other."""

Forward = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""From token ids of rows to their last hidden states, one below the other."""


def draw_rows(vocabulary: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A neighbour and a row for each draw, of lengths that fill no bucket."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(vocabulary, (17 + draw,), generator=generator),
            torch.randint(vocabulary, (29 + draw,), generator=generator),
        )
        for draw in range(DRAWS)
    ]


def expected_states(forward: Forward, vocabulary: int) -> list[torch.Tensor]:
    """Each draw's row by itself, by the model's own way."""
    with torch.no_grad():
        return [forward([row]) for _, row in draw_rows(vocabulary)]


def largest_error(forward: Forward, vocabulary: int, expected: Sequence[torch.Tensor]) -> float:
    """How far a row behind a neighbour is from what is expected of it, in the best draw."""
    errors: list[float] = []
    with torch.no_grad():
        for (neighbour, row), states in zip(draw_rows(vocabulary), expected, strict=True):
            found = forward([neighbour, row])[-len(row) :]
            difference = (found.float() - states.float()).norm(dim=1) / states.float().norm(dim=1)
            errors.append(float(difference.max()))
    return min(errors)
