"""Evaluations: what was measured of a revision, and what the scores rest on."""

from uuid import UUID

import asyncpg

from openmint.catalog.database import Connection
from openmint.catalog.rows import Evaluation, EvaluationDraft, dump_json, load_json
from openmint.errors import NotFound

_COLUMNS = "evaluation_id, revision_id, fence, suite, passed, summary, scores, rests_on, report_key, created_at"


async def insert_evaluations(conn: Connection, revision_id: UUID, fence: int, drafts: list[EvaluationDraft]) -> None:
    """Record evaluations, in the transaction of their verdict. One that is there already stays as it is."""
    await conn.executemany(
        "insert into evaluations (evaluation_id, revision_id, fence, suite, passed, summary, scores, rests_on,"
        " report_key) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (evaluation_id) do nothing",
        [
            (
                draft.evaluation_id,
                revision_id,
                fence,
                draft.suite,
                draft.passed,
                draft.summary,
                dump_json(draft.scores),
                dump_json(draft.rests_on),
                draft.report_key,
            )
            for draft in drafts
        ],
    )


async def find_evaluation(conn: Connection, evaluation_id: UUID) -> Evaluation:
    """Raises: NotFound."""
    row = await conn.fetchrow(f"select {_COLUMNS} from evaluations where evaluation_id = $1", evaluation_id)
    if row is None:
        raise NotFound(f"there is no evaluation {evaluation_id}")
    return _evaluation_from(row)


async def list_evaluations(conn: Connection, revision_id: UUID) -> list[Evaluation]:
    """All evaluations of a revision, oldest first."""
    rows = await conn.fetch(
        f"select {_COLUMNS} from evaluations where revision_id = $1 order by evaluation_id", revision_id
    )
    return [_evaluation_from(row) for row in rows]


def _evaluation_from(row: asyncpg.Record) -> Evaluation:
    fields = dict(row)
    fields["scores"] = load_json(fields["scores"])
    fields["rests_on"] = load_json(fields["rests_on"])
    return Evaluation(**fields)
