"""The killer repeats itself from its seed, and the oracle sees each kind of broken promise."""

import pytest

from openmint.chaos.killer import STOPPABLE, plan_blows
from openmint.chaos.oracle import SeenFact, Verdict, judge_events

PARTS = ["gateway", "trainer", "trainer-2", "exporter", "scheduler", "nats", "postgres", "engine-one"]


def plan(seed: int, kills: int = 40, engine_kills: int = 1):
    return plan_blows(seed, kills, PARTS, engine_kills, (0.1, 0.2))


def test_same_seed_strikes_the_same_parts_in_the_same_order() -> None:
    assert plan(7) == plan(7)
    assert plan(7) != plan(8)


@pytest.mark.parametrize("seed", range(5))
def test_engines_are_hit_as_often_as_asked_and_only_holders_of_leases_are_stopped(seed: int) -> None:
    blows = plan(seed, engine_kills=2)
    assert sum(blow.part.startswith("engine-") for blow in blows) == 2
    assert {blow.part.split("-")[0] for blow in blows if blow.fault == "stop"} <= set(STOPPABLE)
    assert {"kill", "stop"} == {blow.fault for blow in blows}


def fact(kind: str, number: int, about: str = "j1", **body: object) -> SeenFact:
    return SeenFact(f"openmint.{kind}.v1", f"event-{number}", about, str(body.get("digest") or ""), body)


def problems_of(*facts: SeenFact) -> list[str]:
    verdict = Verdict()
    judge_events(facts, ["j1"], verdict)
    return verdict.problems


def test_one_ending_delivered_twice_is_no_problem() -> None:
    assert problems_of(fact("job.completed", 1), fact("job.completed", 1)) == []


def test_two_endings_or_none_are_seen() -> None:
    assert "ended 2 times" in problems_of(fact("job.completed", 1), fact("job.failed", 2))[0]
    assert "ended 0 times" in problems_of()[0]


def test_second_export_and_second_verdict_are_seen() -> None:
    ended = fact("job.completed", 1)
    exports = [fact("revision.exported", n, "r1", digest=f"d{n}") for n in (2, 3)]
    verdicts = [fact("revision.eligible", 4, "r1"), fact("revision.rejected", 5, "r1")]
    assert problems_of(ended, *exports, *verdicts) == ["revision r1 was exported 2 times", "revision r1 got 2 verdicts"]


def test_waiver_after_a_rejection_is_no_second_verdict() -> None:
    facts = [fact("revision.rejected", 2, "r1"), fact("revision.eligible", 3, "r1", waived_by="ada")]
    assert problems_of(fact("job.completed", 1), *facts) == []
