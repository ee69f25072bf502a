"""The facts of a revision's life, from its row."""

from openmint.catalog.rows import JsonObject, Revision
from openmint.events import Cause, RevisionExported, RevisionFailed, RevisionRejected, RevisionRetired


def exported_fact(revision: Revision) -> RevisionExported:
    """The fact of the export; the same id whenever it is told."""
    return RevisionExported(
        event_id=revision.hint_event_id,
        **identity_of(revision),
        **artefact_of(revision),
        adapter_bytes=revision.adapter_bytes or 0,
        export_ms=revision.export_ms,
    )


def rejected_fact(revision: Revision, summary: str) -> RevisionRejected:
    """The fact of a rejection without a report."""
    return RevisionRejected(**identity_of(revision), **artefact_of(revision), summary=summary)


def failed_fact(revision: Revision, cause: Cause) -> RevisionFailed:
    """The fact of an export that is given up."""
    return RevisionFailed(**identity_of(revision), cause=cause)


def retired_fact(revision: Revision) -> RevisionRetired:
    """The fact of the retirement."""
    return RevisionRetired(**identity_of(revision), **artefact_of(revision))


def identity_of(revision: Revision) -> JsonObject:
    """What every fact of a revision says."""
    return {
        "tenant": revision.tenant,
        "revision_id": revision.revision_id,
        "job_id": revision.job_id,
        "policy": revision.policy,
        "base": revision.base,
        "step": revision.step,
    }


def artefact_of(revision: Revision) -> JsonObject:
    """What a fact says of a revision that has been exported."""
    return {"digest": revision.digest, "number": revision.number}
