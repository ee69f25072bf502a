"""One good example of each event, as `schemas/examples/` publishes it: what a reader copies and changes.

Ids are fixed, so that writing them again changes nothing.
"""

from datetime import UTC, datetime
from uuid import UUID

from openmint import events
from openmint.events.base import Event
from openmint.events.training import JsonObject

TENANT = "acme"
POLICY = "film-reviews"
BASE = "smollm2-135m"
DIGEST = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
FORMER = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _id(number: int) -> UUID:
    return UUID(f"0197a2c4-0000-7000-8000-{number:012x}")


JOB, POLICY_ID, CHECKPOINT, REVISION, FORMER_REVISION, EVALUATION, BOOT = (_id(n) for n in range(1, 8))
_AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


def examples() -> dict[type[Event], Event]:
    """An example of every event class."""
    fact: JsonObject = {"tenant": TENANT, "occurred_at": _AT, "causation_id": "JOBS-17"}
    job: JsonObject = {**fact, "job_id": JOB, "policy": POLICY, "base": BASE}
    revision: JsonObject = {**job, "revision_id": REVISION, "step": 60, "digest": DIGEST, "number": 2}
    engine: JsonObject = {"occurred_at": _AT, "base": BASE, "engine": "serve-0", "boot_id": BOOT}
    urls: JsonObject = {"url": "http://10.0.0.7:8100", "control_url": "http://10.0.0.7:8101"}
    adapter: JsonObject = {**engine, "sequence": 12, "digest": DIGEST, "adapter_name": "r-5f70bf18-1"}
    now = events.AliasTarget(revision_id=REVISION, digest=DIGEST, number=2)
    before = events.AliasTarget(revision_id=FORMER_REVISION, digest=FORMER, number=1)
    made: list[Event] = [
        events.TrainRequested.model_validate(
            {
                "policy": POLICY,
                "base": BASE,
                "dataset": {
                    "rows": [
                        {"prompt": "A waste of two hours.\nSentiment:", "completion": " negative"},
                        {"prompt": "Warm, funny and wise.\nSentiment:", "completion": " positive"},
                    ]
                },
                "adapter": {"rank": 8, "alpha": 16},
                "training": {"steps": 60, "batch_rows": 8, "revision_at_steps": [30]},
                "evaluation": {
                    "held_out": {"digest": DIGEST},
                    "scorer": "label",
                    "labels": [" negative", " positive"],
                    "min_gain_over_base": 0.05,
                },
                "promotion": {"alias": "production", "rule": "on_pass"},
                "idempotency_key": "film-reviews-2026-11-24",
                "x_ticket": "OPS-1204",
            }
        ),
        events.JobAccepted(**job, event_id=_id(101), idempotency_key="film-reviews-2026-11-24"),
        events.JobRefused(
            **fact,
            event_id=_id(102),
            request_id="JOBS-18",
            request_token="nightly",
            cause=events.Cause(code="bad_event", detail="adapter.rank: at least 1 is needed", field="adapter.rank"),
        ),
        events.JobStarted(**job, event_id=_id(103), fence=1),
        events.JobProgressed(
            **job, event_id=_id(104), step=30, steps=60, loss=0.41, tokens=19200, tokens_per_s=640.0, eta_s=30.0
        ),
        events.CheckpointSaved(
            **job,
            event_id=_id(105),
            checkpoint_id=CHECKPOINT,
            step=60,
            checkpoint_bytes=14_680_064,
            revision_id=REVISION,
        ),
        events.JobCompleted(**job, event_id=_id(106), steps=60, tokens=38400, final_loss=0.22),
        events.JobFailed(
            **job, event_id=_id(107), cause=events.Cause(code="diverged", detail="the loss of step 12 is not finite")
        ),
        events.JobCancelled(**job, event_id=_id(108), cancelled_by="acme"),
        events.RevisionExported(**revision, event_id=_id(109), adapter_bytes=4_900_000, export_ms=310.0),
        events.RevisionFailed(
            **job,
            event_id=_id(110),
            revision_id=REVISION,
            step=60,
            cause=events.Cause(code="store_unavailable", detail="the store does not answer", fault="server"),
        ),
        events.RevisionEligible(
            **revision, event_id=_id(111), evaluation_id=EVALUATION, summary="accuracy 0.87, the base has 0.71"
        ),
        events.RevisionRejected(
            **revision, event_id=_id(112), evaluation_id=EVALUATION, summary="accuracy 0.48 is below the base's 0.71"
        ),
        events.RevisionQuarantined(
            **revision, event_id=_id(113), reason="non-finite answers alone on two fresh engines"
        ),
        events.RevisionRetired(**revision, event_id=_id(114)),
        events.AliasMoved(
            **fact,
            event_id=_id(115),
            policy_id=POLICY_ID,
            policy=POLICY,
            base=BASE,
            alias="production",
            alias_version=2,
            targets=[now],
            previous=[before],
            actor="evaluator",
            reason="the gate was passed",
        ),
        events.LoadRequested(
            base=BASE,
            tenant=TENANT,
            policy=POLICY,
            revision_id=REVISION,
            digest=DIGEST,
            rank=8,
            adapter_bytes=4_900_000,
            waiter="gateway-1",
            deadline_s=60,
        ),
        events.LoadFailed(
            tenant=TENANT,
            occurred_at=_AT,
            event_id=_id(116),
            base=BASE,
            pool="serve",
            digest=DIGEST,
            cause=events.Cause(code="overloaded", detail="the load queue is full", fault="server"),
            retry_after_s=5,
        ),
        events.AdapterResident(
            **adapter, event_id=_id(117), url=urls["url"], pools=["serve"], stage_ms=41.0, attach_ms=6.0
        ),
        events.AdapterGone(**adapter, event_id=_id(118), reason="evicted"),
        events.AdapterCondemned(
            **engine,
            event_id=_id(122),
            digest=DIGEST,
            failures=2,
            reason="alone on engine serve-1 it gave no finite answer, 2 of 2 times",
        ),
        events.EngineJoined(
            **engine, **urls, event_id=_id(119), base_digest=FORMER, pools=["serve"], build="vllm 0.32.0, bfloat16"
        ),
        events.EngineLeft(**engine, event_id=_id(120), reason="it did not answer for 30 s"),
        events.EngineHeartbeat(
            **engine,
            **urls,
            event_id=_id(121),
            base_digest=FORMER,
            pools=["serve"],
            capacity=32,
            max_rank=16,
            list_version=7,
            list_hash="b1946ac9",
            last_command=40,
            residents=2,
            running=1,
        ),
    ]
    return {type(event): event for event in made}


def example_subject(event: Event) -> str:
    """Where an example would be published."""
    if isinstance(event, events.Fact):
        return event.subject()
    if isinstance(event, events.LoadRequested):
        return event.load_subject()
    if isinstance(event, events.Command):
        return event.subject(TENANT, "nightly")
    raise TypeError(f"{type(event).__name__} is neither a command nor a fact")
