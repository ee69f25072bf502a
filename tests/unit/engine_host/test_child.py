import os
import subprocess
import sys
import time
from pathlib import Path


def wait_until_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_child_dies_with_the_process_that_started_it():
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'openmint_engine_host.child', str(os.getpid()),"
        " sys.executable, '-c', 'import time; print(\"up\", flush=True); time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    (pid,) = lines - {"up"}
    parent.kill()
    parent.wait()
    assert wait_until_gone(int(pid))


def test_a_child_whose_parent_is_gone_already_does_not_start():
    command = [sys.executable, "-m", "openmint_engine_host.child", "1", sys.executable, "-c", "print('up')"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "up" not in answer.stdout
