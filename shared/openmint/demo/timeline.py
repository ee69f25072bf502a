"""The timeline of the demonstration: rebuilt from the EVENTS stream, not from what the demonstration remembers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats
from nats.errors import TimeoutError as NatsTimeout

from openmint.settings import CommonSettings


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact of the stream."""

    kind: str
    """`job.accepted`, `alias.moved` …"""
    at: datetime
    body: dict[str, Any]

    def about(self) -> str:
        """The part of the body that a reader of the timeline wants."""
        b = self.body
        match self.kind:
            case "job.accepted" | "job.started" | "job.completed":
                return f"job …{str(b['job_id'])[-6:]} of {b['policy']}"
            case "checkpoint.saved":
                return f"step {b['step']}, {b['checkpoint_bytes'] / 1e6:.1f} MB"
            case "revision.exported":
                return f"revision {b['number']} {b['digest'][7:19]}, {b['adapter_bytes'] / 1e6:.1f} MB"
            case "revision.eligible" | "revision.rejected":
                return f"revision {b['number']}: {b.get('summary', '')}"
            case "alias.moved":
                return f"{b['alias']} → revision {b['targets'][0]['number']} (version {b['alias_version']})"
            case _:
                return ""


async def read_timeline(settings: CommonSettings, tenant: str, policy: str) -> list[Entry]:
    """All facts about one policy, in the order of the stream, each event once."""
    client = await nats.connect(settings.nats_url, user=settings.nats_user, password=settings.nats_password)
    try:
        subscription = await client.jetstream().subscribe(
            f"openmint.*.*.*.{tenant}.>", stream="EVENTS", ordered_consumer=True
        )
        entries: list[Entry] = []
        seen: set[str] = set()
        pending = (await client.jetstream().stream_info("EVENTS")).state.last_seq
        while True:
            try:
                message = await subscription.next_msg(timeout=1.0)
            except NatsTimeout:
                break
            body = json.loads(message.data)
            if body.get("policy") == policy and body["event_id"] not in seen:
                seen.add(body["event_id"])
                kind = ".".join(message.subject.split(".")[1:3])
                entries.append(Entry(kind, datetime.fromisoformat(body["occurred_at"]), body))
            if message.metadata.sequence.stream >= pending:
                break
        return entries
    finally:
        await client.close()


def format_timeline(entries: Sequence[Entry]) -> str:
    """One line per fact: milliseconds since the first, milliseconds since the one before, what, about what."""
    if not entries:
        return "(nothing happened)"
    lines: list[str] = []
    before = entries[0].at
    for entry in entries:
        total_ms = (entry.at - entries[0].at).total_seconds() * 1000
        step_ms = (entry.at - before).total_seconds() * 1000
        lines.append(f"{total_ms:>9.0f} ms  {step_ms:>+8.0f} ms  {entry.kind:<20} {entry.about()}")
        before = entry.at
    return "\n".join(lines)
