"""What an ordering strategy is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ordering:
    """How waiting loads are compared: first by lane, then by whose turn it is, then by `key`.

    `key` gets (deadline_s, asked_s) of a load and must depend on them alone; the smallest goes first.
    """

    has_classes: bool
    """Whether a better class goes before a worse one (ageing raises what waits)."""

    has_turns: bool
    """Whether tenants take turns by weight, instead of competing with every single load."""

    key: Callable[[float, float], float]
