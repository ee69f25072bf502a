from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from openmint.catalog.rows import Base, Revision, RevisionState
from openmint.clock import ManualClock
from openmint.engines.residency import Placement
from openmint.errors import EngineFailed, LoadFailed, LoadTimeout, NoEngine, OpenmintError
from openmint_evaluator.engine_builds import EngineBuilds
from openmint_evaluator.loaded_engines import LoadedEngines

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE = Base("tiny", "sha256:" + "b" * 64, "/bases/tiny", {}, {})
REVISION = Revision(
    revision_id=uuid4(), tenant="acme", policy_id=UUID(int=1), policy="reviews", base="tiny", job_id=None,
    checkpoint_id=None, step=1, state=RevisionState.EVALUATING, fence=1, tries=1, owner="me", lease_until=NOW, number=1,
    digest="sha256:" + "1" * 64, rank=4, adapter_bytes=10, export_ms=1.0, source="", quarantined_from=None, reason="",
    waived_by=None, cause=None, hint_event_id=uuid4(), created_at=NOW, changed_at=NOW,
)  # fmt: skip


class Loads:
    """Answers each request for a load with the next of its outcomes, then with a placement."""

    def __init__(self, *outcomes: OpenmintError) -> None:
        self.outcomes = list(outcomes)
        self.held = 0

    @asynccontextmanager
    async def lease(self, order: Any, deadline_s: float) -> AsyncIterator[Placement]:
        assert (order.load_class, order.pool) == ("evaluation", "serve")
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.held += 1
        yield Placement("serve-1", "http://127.0.0.1:9/", "reviews@1#1", UUID(int=7))
        self.held -= 1


def make_engines(loads: Loads) -> LoadedEngines:
    http = httpx.AsyncClient()
    return LoadedEngines(loads, EngineBuilds(http), http, 10, 60, ManualClock())  # type: ignore[arg-type]


async def test_engine_that_comes_back_is_waited_for_and_the_lease_is_held() -> None:
    loads = Loads(NoEngine("none yet"), LoadTimeout("slow"))
    async with make_engines(loads).lease(REVISION, BASE, "serve") as lease:
        assert loads.held == 1
        assert (lease.adapter.model, lease.adapter.revision) == ("reviews@1#1", REVISION.digest)
        assert (lease.base.model, lease.base.revision) == ("tiny", "base")
    assert loads.held == 0


async def test_patience_ends() -> None:
    loads = Loads(*(NoEngine("none", retry_after_s=5) for _ in range(100)))
    with pytest.raises(NoEngine):
        async with make_engines(loads).lease(REVISION, BASE, "serve"):
            pass
    assert 80 < len(loads.outcomes) < 90


async def test_files_that_must_not_be_loaded_are_a_verdict_and_trouble_of_a_host_is_not() -> None:
    with pytest.raises(LoadFailed, match="rank"):
        async with make_engines(Loads(LoadFailed("rank is too high"))).lease(REVISION, BASE, "serve"):
            pass
    with pytest.raises(EngineFailed, match="inspecting child ended"):
        loads = Loads(LoadFailed("the inspecting child ended with 1", retry_after_s=2))
        async with make_engines(loads).lease(REVISION, BASE, "serve"):
            pass
