"""Moving the alias when a verdict allows it, in the transaction of the verdict: a crash can't lose the move."""

from openmint.catalog import aliases
from openmint.catalog.database import Connection
from openmint.catalog.rows import Alias, Revision
from openmint.errors import AliasConflict, AliasFrozen, NotEligible, NotFound
from openmint.events import PromotionSpec

ACTOR = "evaluator"


async def promote(conn: Connection, revision: Revision, promotion: PromotionSpec, service: str) -> str:
    """Apply the job's rule to a revision that has just become eligible. Returns what happened, in words.

    An alias that moved since it was read is read once more. A frozen alias stays, and so does one that already points
    to a newer revision: a slow evaluation must not take a policy back.
    """
    if promotion.rule != "on_pass":
        return f"left to a person: the job's rule is {promotion.rule}"
    for is_last in (False, True):
        present = await _read(conn, revision, promotion.alias)
        if present is not None and revision.number is not None and present.number >= revision.number:
            return f"{promotion.alias} stays at revision {present.number}, which is not older than this one"
        try:
            move = await aliases.move_alias(
                conn,
                service=service,
                policy_id=revision.policy_id,
                alias=promotion.alias,
                revision_id=revision.revision_id,
                expected_version=0 if present is None else present.version,
                actor=ACTOR,
                reason=f"revision {revision.number} passed its gate; the job's rule is on_pass",
            )
        except AliasFrozen:
            return f"{promotion.alias} is frozen and stays where it is"
        except NotEligible as error:
            return f"{promotion.alias} stays where it is: {error.detail}"
        except AliasConflict:
            if is_last:
                return f"{promotion.alias} moved twice while this was decided and stays where it is now"
            continue
        former = "nothing" if move.previous is None else f"revision {move.previous.number}"
        return f"{promotion.alias} moved from {former} to this revision (version {move.alias_version})"
    raise AssertionError("the second round returns")


async def _read(conn: Connection, revision: Revision, alias: str) -> Alias | None:
    try:
        return await aliases.find_alias(conn, revision.policy_id, alias)
    except NotFound:
        return None
