"""Five random blows while jobs run: nothing accepted is lost, nothing happens twice, every alias answers."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fixtures_stack import BASE, BASES

from openmint.chaos.run import ChaosOptions, run

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="openmint-chaos-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_five_blows_break_no_promise(folder: Path) -> None:
    options = ChaosOptions(
        state_dir=folder, tokenizer_from=BASES / BASE, kills=5, seed=3, jobs=6, policies=3, engine_kills=0
    )
    report = await run(options, print)
    assert report.verdict.problems == []
    assert report.accepted == 6
    assert report.aliases_answering >= 1
    assert len(report.blows) >= 4
