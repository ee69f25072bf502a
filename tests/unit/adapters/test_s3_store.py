"""The store on an S3 server: moto's, where `moto[server]` is installed, or any that the AWS variables name.

Set OPENMINT_TEST_S3_URL=s3://bucket/prefix (with AWS_ENDPOINT_URL and credentials) to run this against a real one.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from openmint.adapters.store import Store
from openmint.errors import NotFound, StoreUnavailable, TooLarge


def wait_for(url: str) -> None:
    """Poll until the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="module")
def s3_options(tmp_path_factory):
    """Options of a server of our own; none where the environment names one."""
    if os.environ.get("OPENMINT_TEST_S3_URL"):
        yield {}
        return
    server = shutil.which("moto_server")
    if server is None or subprocess.run([server, "--help"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("no S3 server: moto_server is not installed and OPENMINT_TEST_S3_URL is not set")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{endpoint}/moto-api/")
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/openmint", method="PUT"), timeout=10).read()
        yield {"endpoint": endpoint, "access_key_id": "id", "secret_access_key": "key", "region": "us-east-1"}
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def store(s3_options):
    return Store.open(os.environ.get("OPENMINT_TEST_S3_URL") or "s3://openmint/some/prefix", s3_options)


async def test_bytes_and_files_come_back(store, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(12_000_000))  # more than one part of an upload
    await store.put_file("a/file", source)
    await store.put_bytes("a/bytes", b"hello")
    assert await store.get_bytes("a/bytes") == b"hello"
    assert await store.fetch_to("a/file", target) == 12_000_000 and target.read_bytes() == source.read_bytes()
    assert await store.list("a/") == ["a/bytes", "a/file"]
    assert await store.size("a/file") == 12_000_000
    await store.delete("a/file")
    await store.delete("a/file")
    assert await store.list("a/") == ["a/bytes"] and not await store.exists("a/file")


async def test_errors_are_ours(store, tmp_path):
    with pytest.raises(NotFound, match="no/such"):
        await store.get_bytes("no/such")
    await store.put_bytes("big", bytes(1000))
    with pytest.raises(TooLarge):
        await store.fetch_to("big", tmp_path / "t", max_bytes=10)
    assert list(tmp_path.iterdir()) == []


async def test_a_bucket_that_is_not_there_is_unavailable(s3_options):
    if not s3_options:
        pytest.skip("only on a server of our own")
    with pytest.raises((StoreUnavailable, NotFound)):
        await Store.open("s3://no-such-bucket", s3_options).put_bytes("k", b"x")
