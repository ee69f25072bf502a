"""The command line against a running gateway, from data to rollback."""

import asyncio
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from openmint.cli.main import main


@pytest.fixture
async def run(world, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command in this process; gives exit code, standard output and standard error."""
    monkeypatch.setenv("OPENMINT_URL", world.url)
    monkeypatch.setenv("OPENMINT_KEY", await world.key())
    monkeypatch.setenv("OPENMINT_STATE_DIR", str(tmp_path))

    def call(arguments: tuple[str, ...]) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            sys.argv = ["openmint", *arguments]
            try:
                main()
            except SystemExit as ended:
                code = ended.code
            finally:
                structlog.reset_defaults()
        return int(str(code or 0)), out.getvalue(), err.getvalue()

    async def run_command(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(call, arguments)

    arguments = sys.argv
    yield run_command
    sys.argv = arguments


async def as_json(run, *arguments: str) -> Any:
    code, out, err = await run(*arguments, "--json")
    assert code == 0, out + err
    return json.loads(out)


async def test_a_job_from_a_file_and_flags_is_submitted_listed_and_cancelled(world, run, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    spec = tmp_path / "job.yaml"
    spec.write_text("policy: support\nbase: tiny\ntraining: {steps: 5, seed: 3}\n")
    dataset = await as_json(run, "data", "put", str(rows))
    job = await as_json(run, "train", str(spec), "--data", str(rows), "--steps", "7", "--promote")
    assert job["spec"]["dataset"]["digest"] == dataset["digest"]
    assert (job["spec"]["training"]["steps"], job["spec"]["training"]["seed"]) == (7, 3)
    assert job["spec"]["promotion"]["rule"] == "on_pass"
    assert [found["job_id"] for found in await as_json(run, "jobs")] == [job["job_id"]]
    assert (await as_json(run, "cancel", job["job_id"]))["state"] == "cancelled"
    code, out, _ = await run("watch", job["job_id"])
    assert (code, "cancelled" in out) == (1, True)


async def test_a_bad_job_is_one_line_that_names_the_field(world, run, tmp_path: Path):
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps({"policy": "support", "base": "tiny", "learning_rat": 1}))
    code, out, err = await run("train", str(spec))
    assert (code, out) == (2, "")
    assert "dataset" in err or "learning_rat" in err
    assert len(err.strip().splitlines()) == 1
    spec.write_text(
        json.dumps({"policy": "support", "base": "gpt", "dataset": {"rows": [{"prompt": "a", "completion": "b"}]}})
    )
    code, _, err = await run("train", str(spec))
    assert code == 2
    assert "no base model 'gpt'" in err


@pytest.mark.slow
async def test_promote_rollback_freeze_and_chat(world, run):
    first, second = await world.revision(), await world.revision()
    await world.engine.hold(world.bus, first.digest)
    assert (await as_json(run, "promote", "support", "2", "--reason", "better"))["digest"] == second.digest
    assert (await as_json(run, "promote", "support", "1"))["previous_number"] == 2
    code, _, err = await run("promote", "support", "2", "--expected-version", "1")
    assert (code, "alias_conflict" in err) == (2, True)
    answer = await as_json(run, "chat", world.model, "hello")
    assert (answer["text"], answer["revision"]) == ("t0 t1 t2 ", first.digest)
    code, out, _ = await run("chat", world.model, "hello")
    assert (code, "t0 t1 t2" in out) == (0, True)
    assert (await as_json(run, "rollback", "support"))["number"] == 2
    assert (await as_json(run, "freeze", "support"))["frozen"]
    code, _, err = await run("rollback", "support")
    assert (code, "frozen" in err) == (2, True)
    code, out, _ = await run("policies")
    assert world.model in out
    assert "production=2 (frozen)" in out
    code, out, _ = await run("revisions", "support")
    assert "eligible" in out
