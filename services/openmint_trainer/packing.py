"""Who goes into the next micro-batch: a token budget filled from whoever has work, fair between tenants.

The budget, not the number of policies, sets peak memory. The packer is a plain object without clock or randomness.
"""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from openmint.errors import BadDataset
from openmint_trainer.rows import Portion, Row, in_units

Key = TypeVar("Key", bound=Hashable)

ROW_BUCKET = 32
"""Micro-batches are padded to a multiple of this many rows, so that no matrix product ends in a partial tile, whose
rows some kernels compute in another order: a row's bits then do not depend on where it lies."""


def padded(tokens: int) -> int:
    """`tokens` rounded up to whole buckets."""
    return -(-tokens // ROW_BUCKET) * ROW_BUCKET


def check_budget(rows: Sequence[Row], budget_tokens: int, unit_rows: int = 1) -> None:
    """Raises: BadDataset naming the row of the dataset (from 1) that no micro-batch can hold.

    A row of the dataset became `unit_rows` neighbours here, which go through the base together.
    """
    for number, unit in enumerate(in_units(rows, unit_rows), start=1):
        tokens = sum(len(row) for row in unit)
        if tokens > budget_tokens:
            raise BadDataset(
                f"row {number} has {tokens} tokens, more than this trainer's {budget_tokens}", field="dataset"
            )


def check_vocabulary(rows: Sequence[Row], size: int, unit_rows: int = 1) -> None:
    """Raises: BadDataset naming the row of the dataset (from 1) with a token that the base does not have."""
    for index, row in enumerate(rows):
        for ids in (row.tokens, row.targets):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                found = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise BadDataset(
                    f"row {index // unit_rows + 1} has token {found}, and the base has {size} tokens", field="dataset"
                )


@dataclass(slots=True)
class _Member:
    tenant: str
    served_tokens: int


class Packer:
    """Chooses portions for micro-batches of at most `budget_tokens` padded rows.

    The tenant that was served the fewest tokens comes first, and of it the job that was served the fewest. Whoever
    comes first always gets in, so a large portion waits for at most one micro-batch of each other member.
    """

    def __init__(self, budget_tokens: int) -> None:
        if budget_tokens < ROW_BUCKET:
            raise ValueError(f"a budget of {budget_tokens} tokens is below one bucket of {ROW_BUCKET}")
        self.budget_tokens = budget_tokens // ROW_BUCKET * ROW_BUCKET
        self._members: dict[Hashable, _Member] = {}
        self._served_by_tenant: dict[str, int] = {}

    def enter(self, key: Hashable, tenant: str) -> None:
        """Admit a job. A newcomer starts level with the least served, so time spent away earns no credit."""
        level = min((m.served_tokens for m in self._members.values() if m.tenant == tenant), default=0)
        if tenant not in self._served_by_tenant:
            self._served_by_tenant[tenant] = min(self._served_by_tenant.values(), default=0)
        self._members[key] = _Member(tenant, level)

    def leave(self, key: Hashable) -> None:
        """Forget a job."""
        member = self._members.pop(key)
        if all(other.tenant != member.tenant for other in self._members.values()):
            del self._served_by_tenant[member.tenant]

    def pack(self, waiting: Mapping[Key, deque[Portion]]) -> list[tuple[Key, Portion]]:
        """Take portions off the queues for one micro-batch; each job's portions stay in their order."""
        chosen: list[tuple[Key, Portion]] = []
        room = self.budget_tokens
        open_keys = {key for key, queue in waiting.items() if queue}
        while open_keys:
            key = min(open_keys, key=self._rank)
            portion = waiting[key][0]
            if portion.tokens > room:
                open_keys.discard(key)
                continue
            waiting[key].popleft()
            room -= portion.tokens
            self._charge(key, portion.tokens)
            chosen.append((key, portion))
            if not waiting[key]:
                open_keys.discard(key)
        return chosen

    def _rank(self, key: Hashable) -> tuple[int, int, str]:
        member = self._members[key]
        return self._served_by_tenant[member.tenant], member.served_tokens, str(key)

    def _charge(self, key: Hashable, tokens: int) -> None:
        member = self._members[key]
        member.served_tokens += tokens
        self._served_by_tenant[member.tenant] += tokens
