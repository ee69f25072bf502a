"""The health file: fresh and well, stale, or naming what does not answer."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from openmint.health import read_problems, reporting_health, run_checks


async def well() -> bool:
    return True


async def broken() -> bool:
    raise ConnectionError


async def hanging() -> bool:
    await asyncio.sleep(60)
    return True


async def test_part_that_reports_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "health.json"
    monkeypatch.setenv("OPENMINT_HEALTH_FILE", str(path))
    async with reporting_health({"bus": well}):
        for _ in range(100):
            if path.exists():
                break
            await asyncio.sleep(0.02)
        assert read_problems(path, time.time()) == []
    assert read_problems(path, time.time()) == [f"no health report at {path}"]


async def test_check_that_fails_or_hangs_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmint.health.CHECK_TIMEOUT_S", 0.05)
    assert await run_checks({"a": well, "b": broken, "c": hanging}) == {"a": True, "b": False, "c": False}


def test_old_report_and_failed_check_are_named(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    path.write_text(json.dumps({"at": 1000.0, "checks": {"bus": False}}))
    assert read_problems(path, 1001.0) == ["bus does not answer"]
    assert "old" in read_problems(path, 1100.0)[0]
