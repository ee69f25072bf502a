"""How an evaluation gets at engines: a lease on one engine of a pool, with the revision resident on it."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from openmint.catalog.rows import Base, Revision
from openmint_evaluator.report import ServingPath
from openmint_evaluator.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class EngineLease:
    """One engine: the revision and the base as it serves them. The revision stays resident while this is held."""

    adapter: ServedModel
    base: ServedModel
    path: ServingPath


class EngineAccess(Protocol):
    """Gives leases. Entering raises NoEngine, LoadTimeout, Overloaded (try again later) or LoadFailed (never)."""

    def lease(self, revision: Revision, base: Base, pool: str) -> AbstractAsyncContextManager[EngineLease]:
        """Have the revision made resident on an engine of the pool, and keep it there until the end of the block."""
        ...
