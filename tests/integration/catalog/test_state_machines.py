"""Random lives of jobs and revisions, held against a model in Python.

The model is written from the design's tables, not from the code: it says for each act whether it must succeed, be
refused or be fenced. Every failure prints the shortest life that shows it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, sampled_from

from openmint.catalog import Catalog, bases, checkpoints, expiry, jobs, revisions
from openmint.catalog.transitions import MAX_TRIES
from openmint.errors import Conflict, Fenced, NotEligible
from openmint.events import Cause
from openmint.identifiers import digest_from_hex, new_id

BOUNDED = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
CAUSE = Cause(code="broken", detail="on purpose", fault="server")
LAPSE = "clock_timestamp() - interval '1 s'"


class CatalogMachine(RuleBasedStateMachine):
    """Runs the catalogue's coroutines one by one, on a loop and a pool that live as long as one test."""

    dsn: ClassVar[str]
    runner: ClassVar[asyncio.Runner]
    catalog: ClassVar[Catalog]

    def run(self, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        async def inside() -> Any:
            async with self.catalog.transaction() as conn:
                return await act(conn)

        return self.runner.run(inside())

    def outcome(self, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> str:
        """`ok`, `fenced` or `refused`."""
        try:
            self.run(act)
        except Fenced:
            return "fenced"
        except (Conflict, NotEligible):
            return "refused"
        return "ok"


@dataclass
class Modelled:
    state: str
    fence: int = 0
    tries: int = 0
    lapsed: bool = False
    cancel: bool = False
    former: str = ""
    digest: bytes | None = None


class JobMachine(CatalogMachine):
    @initialize()
    def accept(self) -> None:
        self.model = Modelled("accepted")
        self.step = 0
        name = f"p{new_id().hex}"
        job, _ = self.run(
            lambda conn: jobs.accept_job(
                conn,
                service="gateway",
                tenant="acme",
                policy=name,
                base="tiny",
                spec={},
                idempotency_key=None,
                request_hash=bytes(32),
                request_id=name,
            )
        )
        self.job_id: UUID = job.job_id

    def held(self) -> bool:
        return self.model.state == "running" and not self.model.lapsed

    def expected(self, fence: int) -> str:
        if fence != self.model.fence:
            return "fenced"
        return "ok" if self.model.state == "running" else "refused"

    @rule()
    def claim(self) -> None:
        job = self.run(lambda conn: jobs.claim_job(conn, "tiny", "trainer", 600))
        due = self.model.state == "accepted" or (
            self.model.state == "running"
            and self.model.lapsed
            and self.model.tries < MAX_TRIES
            and not self.model.cancel
        )
        assert (job is not None) == due
        if job is not None:
            assert job.job_id == self.job_id
            self.model.state, self.model.lapsed = "running", False
            self.model.fence += 1
            self.model.tries += 1
            assert (job.fence, job.tries) == (self.model.fence, self.model.tries)

    @precondition(lambda self: self.model.state == "running")
    @rule()
    def lapse(self) -> None:
        self.run(lambda conn: conn.execute(f"update jobs set lease_until = {LAPSE} where job_id = $1", self.job_id))
        self.model.lapsed = True

    @rule(behind=sampled_from([0, 0, 1]))
    def heartbeat(self, behind: int) -> None:
        fence = self.model.fence - behind
        expected = "ok" if self.expected(fence) == "ok" else "fenced"
        assert self.outcome(lambda conn: jobs.heartbeat_job(conn, self.job_id, fence, 600)) == expected
        if expected == "ok":
            self.model.lapsed = False

    @rule(behind=sampled_from([0, 0, 1]), want=booleans())
    def checkpoint(self, behind: int, want: bool) -> None:
        fence, self.step = self.model.fence - behind, self.step + 1
        expected = "ok" if self.expected(fence) == "ok" else "fenced"
        act = self.outcome(
            lambda conn: checkpoints.commit_checkpoint(
                conn, self.job_id, fence, self.step, f"k{new_id()}", bytes(32), 1, want
            )
        )
        assert act == expected
        if expected == "ok":
            self.model.tries = 0

    @rule(behind=sampled_from([0, 0, 1]), end=sampled_from(["completed", "failed", "cancelled"]))
    def end(self, behind: int, end: str) -> None:
        fence = self.model.fence - behind
        acts: dict[str, Callable[[Any], Coroutine[Any, Any, Any]]] = {
            "completed": lambda conn: jobs.complete_job(conn, self.job_id, fence, 1, 1, 0.5),
            "failed": lambda conn: jobs.fail_job(conn, self.job_id, fence, CAUSE),
            "cancelled": lambda conn: jobs.cancel_job(conn, self.job_id, fence),
        }
        expected = self.expected(fence)
        if expected == "refused" and self.model.state == end:
            expected = "ok"  # The same end, told again.
        if end == "cancelled" and self.model.state == "accepted" and fence == self.model.fence:
            expected = "ok"
        assert self.outcome(acts[end]) == expected
        if expected == "ok":
            self.model.state, self.model.lapsed = end, False

    @rule()
    def release(self) -> None:
        expected = "ok" if self.model.state == "running" else "fenced"
        fence = self.model.fence
        assert self.outcome(lambda conn: jobs.release_job(conn, self.job_id, fence)) == expected
        if expected == "ok":
            self.model.fence += 1
            self.model.tries = max(self.model.tries - 1, 0)
            self.model.lapsed = True

    @rule()
    def request_cancel(self) -> None:
        expected = "refused" if self.model.state in ("completed", "failed") else "ok"
        assert self.outcome(lambda conn: jobs.request_cancel(conn, "acme", self.job_id)) == expected
        if self.held():
            self.model.cancel = True
        elif expected == "ok":
            self.model.state, self.model.lapsed = "cancelled", False

    @rule()
    def keeper_passes(self) -> None:
        self.run(lambda conn: expiry.end_exhausted_jobs(conn, "keeper"))
        if self.model.state == "running" and self.model.lapsed:
            if self.model.cancel:
                self.model.state, self.model.lapsed = "cancelled", False
            elif self.model.tries >= MAX_TRIES:
                self.model.state, self.model.lapsed = "failed", False

    @invariant()
    def catalogue_agrees(self) -> None:
        job = self.run(lambda conn: jobs.find_job(conn, self.job_id))
        assert (job.state, job.fence, job.tries) == (self.model.state, self.model.fence, self.model.tries)
        assert (job.lease_until is None) == (job.state != "running")

    def teardown(self) -> None:
        # What is left must not be due for the next life.
        self.run(
            lambda conn: conn.execute(
                "update jobs set state = 'cancelled', lease_until = null where state in ('accepted', 'running')"
                " and set_config('openmint.unsafe_no_fencing', 'on', true) = 'on'"
            )
        )


class RevisionMachine(CatalogMachine):
    @initialize()
    def want(self) -> None:
        self.model = Modelled("pending")
        self.facts = 0
        self.revision_id: UUID = self.run(self._make)

    async def _make(self, conn: Any) -> UUID:
        name = f"p{new_id().hex}"
        await jobs.accept_job(
            conn,
            service="gateway",
            tenant="acme",
            policy=name,
            base="tiny",
            spec={},
            idempotency_key=None,
            request_hash=bytes(32),
            request_id=name,
        )
        job = await jobs.claim_job(conn, "tiny", "trainer", 600)
        assert job is not None
        _, revision = await checkpoints.commit_checkpoint(conn, job.job_id, job.fence, 1, name, bytes(32), 1, True)
        await jobs.complete_job(conn, job.job_id, job.fence, 1, 1, None)
        assert revision is not None
        return revision.revision_id

    def moved(self, state: str) -> None:
        self.model.state, self.model.lapsed = state, False

    @rule(stage=sampled_from(["exporting", "evaluating"]), by_id=booleans())
    def claim(self, stage: str, by_id: bool) -> None:
        claim = revisions.claim_export if stage == "exporting" else revisions.claim_evaluation
        target = self.revision_id if by_id else None
        revision = self.run(lambda conn: claim(conn, "worker", 600, target))
        fresh = "pending" if stage == "exporting" else "exported"
        again = self.model.state == stage and self.model.lapsed and self.model.tries < MAX_TRIES
        assert (revision is not None) == (self.model.state == fresh or again)
        if revision is not None:
            assert revision.revision_id == self.revision_id
            self.model.tries = self.model.tries + 1 if again else 1
            self.model.fence += 1
            self.moved(stage)

    @precondition(lambda self: self.model.state in ("exporting", "evaluating"))
    @rule()
    def lapse(self) -> None:
        self.run(
            lambda conn: conn.execute(
                f"update revisions set lease_until = {LAPSE} where revision_id = $1", self.revision_id
            )
        )
        self.model.lapsed = True

    def expected(self, fence: int, origin: str, to: str) -> str:
        if fence != self.model.fence:
            return "fenced"
        return "ok" if self.model.state in (origin, to) else "refused"

    @rule(behind=sampled_from([0, 0, 0, 1]))
    def commit_export(self, behind: int) -> None:
        fence = self.model.fence - behind
        digest = digest_from_hex(hashlib.sha256(self.revision_id.bytes).hexdigest())
        expected = self.expected(fence, "exporting", "exported")
        act = self.outcome(
            lambda conn: revisions.commit_export(conn, self.revision_id, fence, digest, {"rank": 8}, 1, 1.0)
        )
        assert act == expected
        if expected == "ok" and self.model.state == "exporting":
            self.model.tries, self.model.digest = 0, bytes.fromhex(digest[7:])
            self.moved("exported")

    @rule(behind=sampled_from([0, 0, 0, 0, 0, 1]))
    def fail_export(self, behind: int) -> None:
        fence = self.model.fence - behind
        expected = self.expected(fence, "exporting", "failed")
        assert self.outcome(lambda conn: revisions.fail_export(conn, self.revision_id, fence, CAUSE)) == expected
        if expected == "ok":
            self.moved("failed")

    @rule(behind=sampled_from([0, 0, 0, 1]), passed=booleans())
    def verdict(self, behind: int, passed: bool) -> None:
        fence, to = self.model.fence - behind, "eligible" if passed else "rejected"
        expected = self.expected(fence, "evaluating", to)
        act = self.outcome(lambda conn: revisions.record_verdict(conn, self.revision_id, fence, passed, "so", []))
        assert act == expected
        if expected == "ok":
            self.moved(to)

    @rule(act=sampled_from(["waive", "quarantine", "release", "retire", "delete"]))
    def decide(self, act: str) -> None:
        judged = ("exported", "evaluating", "eligible", "rejected")
        acts: dict[str, tuple[Callable[[Any], Coroutine[Any, Any, Any]], tuple[str, ...]]] = {
            "waive": (lambda conn: revisions.waive(conn, self.revision_id, "ann", "so"), ("rejected",)),
            "quarantine": (
                lambda conn: revisions.quarantine(conn, self.revision_id, "bad", "scheduler"),
                (*judged, "quarantined"),
            ),
            "release": (lambda conn: revisions.release_quarantine(conn, self.revision_id, "ann"), ("quarantined",)),
            "retire": (
                lambda conn: revisions.retire(conn, self.revision_id, "ann"),
                ("eligible", "rejected", "quarantined"),
            ),
            "delete": (lambda conn: revisions.mark_deleted(conn, self.revision_id), ("retired",)),
        }
        function, origins = acts[act]
        expected = "ok" if self.model.state in origins else "refused"
        assert self.outcome(function) == expected
        if expected == "refused":
            return
        if act == "quarantine" and self.model.state != "quarantined":
            self.model.former = "exported" if self.model.state == "evaluating" else self.model.state
            self.model.fence += 1
            self.moved("quarantined")
        elif act == "release":
            self.model.tries = 0
            self.moved(self.model.former)
        elif act != "quarantine":
            self.moved({"waive": "eligible", "retire": "retired", "delete": "deleted"}[act])

    @precondition(lambda self: self.model.state in ("exporting", "evaluating"))
    @rule()
    def keeper_finds_no_try_left(self) -> None:
        self.run(
            lambda conn: conn.execute(
                f"update revisions set tries = {MAX_TRIES}, lease_until = {LAPSE} where revision_id = $1",
                self.revision_id,
            )
        )
        self.run(lambda conn: expiry.end_exhausted_revisions(conn, "keeper"))
        self.model.tries = MAX_TRIES
        self.moved("failed" if self.model.state == "exporting" else "rejected")

    @invariant()
    def catalogue_agrees(self) -> None:
        revision = self.run(lambda conn: revisions.find_revision(conn, self.revision_id))
        assert (revision.state, revision.fence) == (self.model.state, self.model.fence)
        assert revision.tries == self.model.tries
        assert (revision.lease_until is None) == (revision.state not in ("exporting", "evaluating"))
        if self.model.digest is not None:
            assert revision.digest == digest_from_hex(self.model.digest.hex())
            assert revision.number == 1

    def teardown(self) -> None:
        self.run(
            lambda conn: conn.execute(
                "delete from revisions where revision_id = $1 and state in"
                " ('pending', 'exporting', 'exported', 'evaluating')",
                self.revision_id,
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("machine", [JobMachine, RevisionMachine])
def test_random_lives_agree_with_the_model(catalog: Catalog, machine: type[CatalogMachine]) -> None:
    with asyncio.Runner() as runner:
        machine.runner = runner
        machine.catalog = runner.run(Catalog.open(catalog.dsn, max_size=1))
        runner.run(_register_base(machine.catalog))
        try:
            run_state_machine_as_test(machine, settings=BOUNDED)
        finally:
            runner.run(machine.catalog.close())


async def _register_base(catalog: Catalog) -> None:
    async with catalog.transaction() as conn:
        await bases.register_base(conn, "tiny", digest_from_hex("b" * 64), "/bases/tiny", {}, {})
