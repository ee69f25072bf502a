"""`openmint` as a person and as a program call it: exit codes, one line per error, JSON."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from openmint.bus.connection import Bus
from openmint.bus.dead_letters import bury
from openmint.bus.messages import RawMessage
from openmint.errors import BadEvent

from .conftest import Shell


async def test_keys_are_made_listed_and_revoked_by_the_operator(shell: Shell, tmp_path: Path):
    made = await shell.json("keys", "create", "--tenant", "acme", "--scope", "read", "--label", "mine", "--save")
    assert made["tenant"] == "acme"
    saved = tmp_path / "client.json"
    assert json.loads(saved.read_text())["key"] == made["key"]
    assert saved.stat().st_mode & 0o077 == 0
    (listed,) = await shell.json("keys", "list", "--tenant", "acme")
    assert listed["key"] is None
    await shell.json("keys", "revoke", made["key_id"], "--tenant", "acme")
    assert not (await shell.json("keys", "list", "--tenant", "acme"))[0]["is_live"]


async def test_provisioning_again_changes_nothing(shell: Shell, bus: Bus):
    await shell.json("provision")
    assert (await shell.json("provision"))["unchanged"] is True


async def test_dead_letters_are_listed_shown_and_replayed_mended(shell: Shell, bus: Bus, tmp_path: Path):
    raw = RawMessage("openmint.train.requested.v1.acme.x", b"{nonsense", {}, "JOBS", 1)
    await bury(bus, raw, BadEvent("the body is not JSON", field="body"), consumer="gateway-intake")
    (letter,) = await shell.json("dead", "list")
    assert (letter["error_code"], letter["body"]) == ("bad_event", "{nonsense")
    assert "the body is not JSON" in (await shell.run("dead", "show", str(letter["seq"]))).stdout
    mended = tmp_path / "mended.json"
    mended.write_text("{}")
    await shell.json("dead", "replay", str(letter["seq"]), "--body", str(mended))
    message = await bus.js.get_last_msg("JOBS", "openmint.train.requested.v1.acme.x")
    assert message.data == b"{}"
    assert message.headers is not None
    assert message.headers["ce-id"] == letter["event_id"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["jobs"], 1, "no API key"),
        (["dead", "show", "999999"], 2, "no dead letter 999999"),
        (["keys", "create", "--tenant", "Bad Tenant"], 2, "tenant 'Bad Tenant'"),
        (["keys", "create", "--tenant", "acme", "--scope", "root"], 2, "scopes"),
        (["status"], 1, "openmint up"),
        (["no-such-command"], 2, "No such command"),
    ],
)
async def test_an_error_is_one_line_that_names_the_culprit(shell: Shell, arguments: list[str], code: int, said: str):
    done = await shell.run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


async def test_a_gateway_that_is_away_is_said_and_means_try_again(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENMINT_KEY", "om.x")
    done = await shell.run("policies")
    assert done.returncode == 3
    assert "http://127.0.0.1:9" in done.stderr
    as_json = await shell.run("policies", "--json")
    assert json.loads(as_json.stdout)["error"]["code"] == "gateway_unreachable"
    missing = await shell.run("data", "put", str(tmp_path / "none.jsonl"))
    assert (missing.returncode, "none.jsonl" in missing.stderr) == (2, True)


async def test_the_doctor_names_what_is_wrong(shell: Shell, bus: Bus):
    done = await shell.run("doctor", "--json")
    assert done.returncode == 1
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["bus"]["is_well"]
    assert found["store"]["is_well"]
    assert "openmint provision" in found["catalogue"]["said"]


async def test_no_command_imports_torch_and_help_is_quick(shell: Shell):
    code = "import sys; import openmint.cli.main; sys.exit('torch' in sys.modules or 'asyncpg' in sys.modules)"
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert done.returncode == 0
    assert "promote" in (await shell.run("--help")).stdout
