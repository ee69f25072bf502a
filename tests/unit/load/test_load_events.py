import json
from pathlib import Path

from load.stack.load_events import read_loads, write_loads


def line(event: str, second: float, **fields: object) -> str:
    return json.dumps({"event": event, "timestamp": f"2026-01-01T00:00:{second:09.6f}Z", **fields}) + "\n"


def attached(second: float, revision: str, attach_ms: float = 5.0) -> str:
    return line("adapter.attached", second, engine="one", revision=revision, attach_ms=attach_ms, wait_s=0.5)


def test_loads_of_one_gap_share_its_time_and_a_copy_that_was_there_took_no_stage(tmp_path: Path) -> None:
    scheduler, host, out = tmp_path / "scheduler.log", tmp_path / "host.log", tmp_path / "loads.jsonl"
    host.write_text(line("adapter.staged", 1.0, revision="a", stage_ms=80.0))
    scheduler.write_text(attached(2.0, "a") + attached(2.001, "b", 7.0) + "noise\n" + attached(3.0, "a"))
    found = read_loads(scheduler, {"one": host})
    assert [(r.revision, r.stage_ms, r.attach_ms, r.batch) for r in found] == [
        ("a", 80.0, 12.0, 2),
        ("b", 0.0, 12.0, 2),
        ("a", 0.0, 5.0, 1),
    ]
    write_loads(found, out)
    assert json.loads(out.read_text().splitlines()[0])["wait_ms"] == 500.0
