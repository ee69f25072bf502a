"""Starting, looking at and stopping the supervisor of a local stack."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from openmint.errors import OpenmintError
from openmint.local_stack.plan import StackPlan, plan_as_json, stack_file


class StackDown(OpenmintError):
    """No local stack is running."""

    code = "stack_down"
    http_status = 503


@dataclass(frozen=True, slots=True)
class PartStatus:
    """What the supervisor knows of a part."""

    name: str
    pid: int
    state: str
    """`running`, `restarting` or `stopped`."""
    restarts: int
    since: float
    """Seconds since the Unix epoch of the last start."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class StackStatus:
    """The whole stack as the supervisor last wrote it."""

    supervisor_pid: int
    ready: bool
    note: str
    gateway_url: str
    parts: tuple[PartStatus, ...]

    def pid_of(self, name: str) -> int:
        """The pid of a part; 0 while it is being restarted."""
        return next((part.pid for part in self.parts if part.name == name), 0)


def status(state_dir: Path) -> StackStatus:
    """Read what the supervisor wrote. Raises: StackDown when it is not alive."""
    try:
        body = json.loads(stack_file(state_dir).read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise StackDown("no local stack is running; start one with: openmint up") from error
    if not _is_alive(int(body["supervisor_pid"])):
        raise StackDown("the local stack's supervisor is gone; start it again with: openmint up")
    parts = tuple(PartStatus(**part) for part in body["parts"])
    return StackStatus(int(body["supervisor_pid"]), bool(body["ready"]), body["note"], body["gateway_url"], parts)


def up(plan: StackPlan, timeout_s: float = 300.0) -> StackStatus:
    """Start the supervisor in the background and wait until it has started every part and the gateway answers.

    A stack that is already up is returned as it is. Raises: StackDown with the end of the supervisor's log when
    it ends.
    """
    with contextlib.suppress(StackDown):
        return status(plan.state_dir)
    logs = plan.state_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    plan_path = plan.state_dir / "plan.json"
    plan_path.write_text(json.dumps(plan_as_json(plan)))
    with (logs / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "openmint.local_stack.supervisor", "--plan", str(plan_path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = (logs / "supervisor.log").read_text(errors="replace")[-2000:]
            raise StackDown(f"the supervisor ended with code {process.returncode}:\n{tail}")
        with contextlib.suppress(StackDown):
            seen = status(plan.state_dir)
            if seen.ready and ("gateway" not in plan.services or _answers(seen.gateway_url)):
                return seen
        time.sleep(0.1)
    raise StackDown(f"the stack was not up within {timeout_s:.0f} s; see {logs / 'supervisor.log'}")


def _answers(gateway_url: str) -> bool:
    """Whether the gateway takes requests; what they need may still be starting, and they wait for it."""
    try:
        with urllib.request.urlopen(f"{gateway_url}/healthz", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def down(state_dir: Path, timeout_s: float = 60.0) -> bool:
    """Stop the stack and wait for it; False when none was running."""
    try:
        seen = status(state_dir)
    except StackDown:
        return False
    os.kill(seen.supervisor_pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while _is_alive(seen.supervisor_pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return True
