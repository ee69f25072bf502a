"""What waits and what nobody will finish: hints told again, ends written for those who can't write them any more."""

import structlog

from openmint.catalog import expiry, outbox_rows
from openmint.catalog.database import Catalog
from openmint.catalog.due import announce_again, due_steps
from openmint.errors import NotFound

log = structlog.get_logger()

SERVICE = "keeper"

ANNOUNCEMENTS_PER_ROUND = 200
"""As many as the relay sends in one batch; what is left over is the oldest of the next round."""


async def announce_due_steps(catalog: Catalog, older_than_s: float) -> int:
    """Tell again of every step that has been due and untold for so long; returns how many.

    Two keepers may tell twice: a hint is only a reason to look.
    """
    async with catalog.connection() as connection:
        steps = await due_steps(connection, older_than_s, ANNOUNCEMENTS_PER_ROUND)
        told = 0
        for step in steps:
            try:
                fact = await announce_again(connection, step, SERVICE)
            except NotFound:
                continue  # Somebody took its row away by hand since our look.
            told += 1
            log.info(
                "step.announced_again",
                stage=step.stage,
                subject_id=str(step.subject_id),
                tenant=step.tenant,
                event_id=str(fact.event_id),
                due_since=step.due_since.isoformat(),
            )
    return told


async def end_exhausted(catalog: Catalog) -> int:
    """End jobs and revisions whose last lease ran out; returns how many."""
    async with catalog.transaction() as connection:
        jobs = await expiry.end_exhausted_jobs(connection, SERVICE)
        revisions = await expiry.end_exhausted_revisions(connection, SERVICE)
    for job in jobs:
        log.warning("job.ended_by_keeper", job_id=str(job.job_id), tenant=job.tenant, state=job.state)
    for revision in revisions:
        log.warning(
            "revision.ended_by_keeper",
            revision_id=str(revision.revision_id),
            tenant=revision.tenant,
            state=revision.state,
        )
    return len(jobs) + len(revisions)


async def prune_inbox(catalog: Catalog, older_than_s: float) -> int:
    """Forget events that no stream can deliver again; returns how many."""
    async with catalog.connection() as connection:
        return await outbox_rows.prune_inbox(connection, older_than_s)


async def watch_outbox(catalog: Catalog, warn_after_s: float) -> float:
    """How long the oldest fact has waited for its relay, in seconds; a long wait is logged with whose relay it is."""
    async with catalog.connection() as connection:
        waits = await outbox_rows.oldest_unsent_by_service(connection)
    for service, age_s in waits.items():
        if age_s > warn_after_s:
            log.warning("outbox.stuck", of_service=service, age_s=round(age_s, 1))
    return max(waits.values(), default=0.0)
