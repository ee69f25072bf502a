"""Held-out rows as token ids, the way the base's tokenizer renders them."""

from dataclasses import dataclass

MAX_ROW_TOKENS = 2048
"""Longer held-out rows are left out and counted in the report."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One prompt and its completion; `label` is the completion's place in the job's labels, if it has any."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedDataset:
    """Rows, labels, and how prompts were rendered (`plain`, or the digest of a chat template)."""

    rows: tuple[EncodedRow, ...]
    labels: tuple[tuple[int, ...], ...]
    rendering: str
    left_out: int = 0
