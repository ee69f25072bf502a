"""Everything the catalogue knows about one evaluation, read once before it starts."""

from dataclasses import dataclass

from openmint.catalog import aliases, bases, datasets, evaluations, jobs, revisions
from openmint.catalog.database import Connection
from openmint.catalog.rows import Base, Dataset, Revision, RevisionState
from openmint.errors import NotFound
from openmint.events import EvaluationSpec, PromotionSpec

NEIGHBOUR_STATES = frozenset({RevisionState.EXPORTED, RevisionState.ELIGIBLE, RevisionState.REJECTED})

NEIGHBOURS_LOOKED_AT = 8
"""Of the policy's newest revisions, to find one that is not the subject and has other bytes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One revision to evaluate, what its job asks for, and what it is compared with.

    `held_out_problem` says why the data that the job names can't be had, if so. `production` is the revision behind
    the alias that the job promotes to, unless it is the subject's own bytes; `neighbour` the newest other revision of
    the policy. `report_keys` lead to what was measured of production.
    """

    revision: Revision
    base: Base
    spec: EvaluationSpec
    promotion: PromotionSpec
    held_out: Dataset | None
    held_out_problem: str
    production: Revision | None
    neighbour: Revision | None
    report_keys: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The revision's digest; an exported revision has one."""
        assert self.revision.digest is not None
        return self.revision.digest

    @property
    def name(self) -> str:
        """`tenant/policy@number`, for people."""
        return f"{self.revision.tenant}/{self.revision.policy}@{self.revision.number}"


async def read_subject(conn: Connection, revision: Revision) -> Subject:
    """Gather what an evaluation of this revision needs. A revision without a job (an import) has no metric rules."""
    base = await bases.find_base(conn, revision.base)
    spec, promotion = EvaluationSpec(), PromotionSpec()
    if revision.job_id is not None:
        job = await jobs.find_job(conn, revision.job_id)
        spec = EvaluationSpec.model_validate(job.spec.get("evaluation") or {})
        promotion = PromotionSpec.model_validate(job.spec.get("promotion") or {})
    held_out, problem = None, ""
    if spec.held_out is not None and spec.held_out.digest is not None:
        try:
            held_out = await datasets.find_dataset(conn, revision.tenant, spec.held_out.digest)
        except NotFound as error:
            problem = error.detail
    production = await _in_production(conn, revision, promotion.alias)
    known = [] if production is None else await evaluations.list_evaluations(conn, production.revision_id)
    return Subject(
        revision=revision,
        base=base,
        spec=spec,
        promotion=promotion,
        held_out=held_out,
        held_out_problem=problem,
        production=production,
        neighbour=await _neighbour(conn, revision, production),
        report_keys=tuple(evaluation.report_key for evaluation in known if evaluation.report_key is not None),
    )


async def _in_production(conn: Connection, revision: Revision, alias: str) -> Revision | None:
    try:
        target = await aliases.find_alias(conn, revision.policy_id, alias)
    except NotFound:
        return None
    if target.digest == revision.digest:
        return None
    return await revisions.find_revision(conn, target.revision_id)


async def _neighbour(conn: Connection, revision: Revision, production: Revision | None) -> Revision | None:
    known = {revision.digest, None if production is None else production.digest, None}
    for other in await revisions.list_revisions(conn, revision.policy_id, limit=NEIGHBOURS_LOOKED_AT):
        if other.digest not in known and other.state in NEIGHBOUR_STATES:
            return other
    return None
