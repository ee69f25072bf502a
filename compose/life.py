"""One policy's life inside the compose stack: job event on the bus → trained, exported, gated, promoted → HTTP answer.

Runs in a container of the control image, on the private network, with the stack's own secrets. Prints the digest that
answered as its last line.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import asyncpg
import httpx
import nats

from openmint.catalog.keys import create_key
from openmint.settings import CommonSettings

TENANT = "demo"
POLICY = "sums"
GATEWAY = os.environ.get("OPENMINT_URL", "http://gateway:8080")
PATIENCE_S = 600.0


def job() -> dict[str, object]:
    """A job of a few steps; the event is its body and nothing else."""
    rows = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a in range(4) for b in range(4)]
    return {
        "policy": POLICY,
        "base": "smollm2-135m",
        "dataset": {"rows": rows},
        "optimizer": {"learning_rate": 0.002},
        "training": {"steps": 6, "batch_rows": 8},
        "promotion": {"rule": "on_pass"},
    }


async def make_key(settings: CommonSettings, pepper: bytes) -> str:
    """A key of the tenant, made in the catalogue."""
    connection = await asyncpg.connect(settings.postgres_dsn)
    try:
        async with connection.transaction():
            text, _ = await create_key(connection, TENANT, ["train", "read", "infer", "promote"], pepper=pepper)
        return text
    finally:
        await connection.close()


async def live(settings: CommonSettings, pepper: bytes) -> str:
    """Publish, wait for the promotion, ask; the digest that answered."""
    bus = await nats.connect(settings.nats_url, user=settings.nats_user, password=settings.nats_password)
    heard: list[tuple[str, dict[str, object]]] = []

    async def hear(message: nats.aio.msg.Msg) -> None:
        heard.append((message.subject, json.loads(message.data)))
        print(f"{time.strftime('%X')} {'.'.join(message.subject.split('.')[1:3])}", flush=True)

    for area in ("job", "checkpoint", "revision", "alias"):
        await bus.subscribe(f"openmint.{area}.*.v1.{TENANT}.>", cb=hear)
    await bus.publish(f"openmint.train.requested.v1.{TENANT}.first", json.dumps(job()).encode())
    await bus.flush()
    deadline = time.monotonic() + PATIENCE_S
    while not any(subject.startswith("openmint.alias.moved") for subject, _ in heard):
        bad = [
            body
            for subject, body in heard
            if ".refused." in subject or ".failed." in subject or ".rejected." in subject
        ]
        if bad:
            raise SystemExit(f"the life ended early: {json.dumps(bad[0])}")
        if time.monotonic() > deadline:
            raise SystemExit(f"no promotion within {PATIENCE_S:.0f} s; heard {[subject for subject, _ in heard]}")
        await asyncio.sleep(0.5)
    await bus.close()
    headers = {"authorization": f"Bearer {await make_key(settings, pepper)}"}
    async with httpx.AsyncClient(base_url=GATEWAY, headers=headers, timeout=180) as client:
        answer = await client.post(
            "/v1/completions", json={"model": f"{TENANT}/{POLICY}", "prompt": "2 plus 3 is", "max_tokens": 4}
        )
    if answer.status_code != 200:
        raise SystemExit(f"the gateway answered {answer.status_code}: {answer.text}")
    print(f"text: {answer.json()['choices'][0]['text']!r}")
    return answer.headers["x-openmint-revision"]


def main() -> int:
    """Print the digest, or say what went wrong."""
    pepper = Path("/run/secrets/openmint_key_pepper").read_text().strip().encode()
    digest = asyncio.run(live(CommonSettings().resolve(), pepper))
    print(digest)
    return 0 if digest.startswith("sha256:") else 1


if __name__ == "__main__":
    sys.exit(main())
