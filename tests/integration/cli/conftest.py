"""`openmint` called as a person or a program calls it."""

import asyncio
import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from openmint.cli.main import main
from openmint.settings import CommonSettings


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Shell:
    """Runs commands in this process, in a thread of their own: an interpreter for each would take most of the time."""

    async def run(self, *arguments: str) -> Done:
        return await asyncio.to_thread(self._run, arguments)

    async def json(self, *arguments: str) -> Any:
        done = await self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def _run(self, arguments: tuple[str, ...]) -> Done:
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(sys, "argv", ["openmint", *arguments])
            try:
                main()
            except SystemExit as ended:
                code = ended.code
            finally:
                structlog.reset_defaults()
        return Done(int(str(code or 0)), out.getvalue(), err.getvalue())


@pytest.fixture
def shell(settings: CommonSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in which this test's bus and catalogue are set."""
    for name in list(os.environ):
        if name.startswith("OPENMINT_"):
            monkeypatch.delenv(name)
    values = {
        "STATE_DIR": str(tmp_path),
        "NATS_URL": settings.nats_url,
        "NATS_USER": settings.nats_user,
        "NATS_PASSWORD": settings.nats_password,
        "POSTGRES_DSN": settings.postgres_dsn,
        "URL": "http://127.0.0.1:9",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"OPENMINT_{name}", value)
    return Shell()
