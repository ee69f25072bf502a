from openmint.catalog.rows import JobState, RevisionState
from openmint.catalog.transitions import JOB_TRANSITIONS, LEASED_STATES, REVISION_TRANSITIONS


def _reachable(transitions: frozenset[tuple[str | None, str]]) -> set[str]:
    found: set[str | None] = {None}
    while grown := {after for before, after in transitions if before in found} - found:
        found |= grown
    return {state for state in found if state is not None}


def test_every_state_can_be_reached() -> None:
    assert _reachable(JOB_TRANSITIONS) == set(JobState)
    assert _reachable(REVISION_TRANSITIONS) == set(RevisionState)


def test_an_ended_job_never_changes_again() -> None:
    ended = {state for state in JobState if state.is_ended}
    assert ended == set(JobState) - {before for before, _ in JOB_TRANSITIONS if before is not None}


def test_a_revision_ends_failed_or_deleted() -> None:
    left = {before for before, _ in REVISION_TRANSITIONS}
    assert set(RevisionState) - left == {RevisionState.FAILED, RevisionState.DELETED}


def test_what_is_leased_is_what_can_be_claimed_again() -> None:
    again = {before for before, after in JOB_TRANSITIONS | REVISION_TRANSITIONS if before == after}
    assert again == LEASED_STATES


def test_only_a_verdict_a_waiver_or_a_release_makes_a_revision_eligible() -> None:
    assert {before for before, after in REVISION_TRANSITIONS if after is RevisionState.ELIGIBLE} == {
        RevisionState.EVALUATING,
        RevisionState.REJECTED,
        RevisionState.QUARANTINED,
    }
