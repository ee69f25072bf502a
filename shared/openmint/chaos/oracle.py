"""The oracle: reads what is true and names every broken promise. It uses SQL and the stream, no code under test."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg

TERMINAL_JOBS = ("completed", "failed", "cancelled")
ENDING_FACTS = {"openmint.job.completed.v1", "openmint.job.failed.v1", "openmint.job.cancelled.v1"}
VERDICT_FACTS = {"openmint.revision.eligible.v1", "openmint.revision.rejected.v1"}


@dataclass(frozen=True, slots=True)
class SeenFact:
    """A message of EVENTS, as far as the oracle cares."""

    event_type: str
    event_id: str
    about: str
    """job_id for a job's facts, revision_id for a revision's."""
    digest: str | None
    body: Mapping[str, Any]


@dataclass(slots=True)
class Verdict:
    """What was looked at, and what was wrong."""

    jobs: int = 0
    revisions: int = 0
    facts: int = 0
    problems: list[str] = field(default_factory=list[str])

    def is_clean(self) -> bool:
        """True when no promise was broken."""
        return not self.problems


async def open_work(connection: asyncpg.Connection) -> int:
    """How many jobs and revisions have not reached the end of their work."""
    row = await connection.fetchrow(
        "select (select count(*) from jobs where state in ('accepted', 'running')) + "
        "(select count(*) from revisions where state in ('pending', 'exporting', 'exported', 'evaluating')) as open"
    )
    return int(row["open"]) if row else 0


async def judge_catalogue(connection: asyncpg.Connection, accepted: Iterable[str], verdict: Verdict) -> None:
    """Every accepted job is there and has ended; no revision row contradicts itself."""
    rows = await connection.fetch("select job_id::text, state::text from jobs")
    states = {row["job_id"]: row["state"] for row in rows}
    verdict.jobs = len(states)
    for job_id in accepted:
        if job_id not in states:
            verdict.problems.append(f"job {job_id} was accepted and is not in the catalogue")
        elif states[job_id] not in TERMINAL_JOBS:
            verdict.problems.append(f"job {job_id} has not ended: {states[job_id]}")
    verdict.revisions = len(await connection.fetch("select revision_id from revisions"))
    twice = await connection.fetch(
        "select policy_id::text, number from revisions where number is not null group by 1, 2 having count(*) > 1"
    )
    verdict.problems += [f"policy {row['policy_id']} has two revisions {row['number']}" for row in twice]
    unfinished = await connection.fetch(
        "select j.job_id::text from jobs j where j.state = 'completed' and not exists "
        "(select from revisions r where r.job_id = j.job_id and r.digest is not null)"
    )
    verdict.problems += [f"job {row['job_id']} completed without a revision" for row in unfinished]


def judge_events(facts: Iterable[SeenFact], accepted: Iterable[str], verdict: Verdict) -> None:
    """Each job ended once, each revision was exported once with one digest, each got one verdict.

    The same event_id may be delivered twice (that is what event ids are for); two different ones may not.
    """
    endings: dict[str, set[str]] = {}
    exports: dict[str, set[tuple[str, str | None]]] = {}
    verdicts: Counter[str] = Counter()
    seen: set[str] = set()
    for fact in facts:
        verdict.facts += 1
        if fact.event_id in seen:
            continue
        seen.add(fact.event_id)
        if fact.event_type in ENDING_FACTS:
            endings.setdefault(fact.about, set()).add(fact.event_id)
        elif fact.event_type == "openmint.revision.exported.v1":
            exports.setdefault(fact.about, set()).add((fact.event_id, fact.digest))
        elif fact.event_type in VERDICT_FACTS and not fact.body.get("waived_by"):
            verdicts[fact.about] += 1
    for job_id in accepted:
        count = len(endings.get(job_id, ()))
        if count != 1:
            verdict.problems.append(f"job {job_id} ended {count} times on the bus")
    verdict.problems += [f"revision {r} was exported {len(e)} times" for r, e in exports.items() if len(e) > 1]
    verdict.problems += [f"revision {r} got {n} verdicts" for r, n in verdicts.items() if n > 1]


async def judge_store(connection: asyncpg.Connection, present: Iterable[str], verdict: Verdict) -> None:
    """Every revision that the catalogue names lies in the store, complete."""
    keys = set(present)
    rows = await connection.fetch(
        "select distinct encode(digest, 'hex') as hex from revisions where digest is not null and state <> 'deleted'"
    )
    for row in rows:
        for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json", "manifest.sig"):
            if f"revisions/{row['hex']}/{name}" not in keys:
                verdict.problems.append(f"revision {row['hex'][:12]} lacks {name} in the store")
