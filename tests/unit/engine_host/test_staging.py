import asyncio
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from openmint.errors import BadAdapter, StoreUnavailable
from openmint_engine_host.layout import EngineModule, ModuleTable, Slice
from openmint_engine_host.spool import Spool
from openmint_engine_host.staging import Stager, VerifiedAdapter

TABLE = ModuleTable("float32", 1, 4, (EngineModule("m", False, (Slice("m", 8, 6),)),))
DIGEST = "sha256:" + "b" * 64


class SmallAdapters:
    """Gives a one-module adapter for any digest, and counts."""

    def __init__(self, rank: int = 2) -> None:
        self.rank = rank
        self.fetches = 0
        self.at_once = 0
        self.most_at_once = 0
        self.failure: Exception | None = None

    async def fetch(self, digest: str, folder: Path) -> VerifiedAdapter:
        self.fetches += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        if self.failure:
            raise self.failure
        tensors = {"base_model.model.m.lora_A.weight": np.ones((self.rank, 8), np.float32)}
        tensors["base_model.model.m.lora_B.weight"] = np.ones((6, self.rank), np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        return VerifiedAdapter(folder / "adapter_model.safetensors", self.rank, 4.0)


def make_stager(tmp_path: Path, source: SmallAdapters, concurrency: int = 2, resident: frozenset[str] = frozenset()):
    spool = Spool(tmp_path / "prepared", 1 << 20)
    return Stager(source, spool, tmp_path / "scratch", concurrency, lambda: resident)


async def test_many_who_ask_for_one_revision_share_one_staging(tmp_path: Path):
    source = SmallAdapters()
    stager = make_stager(tmp_path, source)
    results = await asyncio.gather(*(stager.stage(DIGEST, TABLE) for _ in range(6)))
    assert source.fetches == 1
    assert {result.layout_bytes for result in results} == {results[0].layout_bytes}
    assert (await stager.stage(DIGEST, TABLE)).was_staged
    assert source.fetches == 1


async def test_no_more_are_staged_at_once_than_the_limit(tmp_path: Path):
    source = SmallAdapters()
    stager = make_stager(tmp_path, source, concurrency=2)
    await asyncio.gather(*(stager.stage(f"sha256:{number:064x}", TABLE) for number in range(6)))
    assert source.most_at_once == 2


async def test_one_who_hangs_up_does_not_fail_the_others(tmp_path: Path):
    stager = make_stager(tmp_path, SmallAdapters())
    first = asyncio.create_task(stager.stage(DIGEST, TABLE))
    second = asyncio.create_task(stager.stage(DIGEST, TABLE))
    await asyncio.sleep(0.005)
    first.cancel()
    assert (await second).digest == DIGEST


async def test_a_failure_leaves_nothing_and_the_next_try_starts_anew(tmp_path: Path):
    source = SmallAdapters()
    stager = make_stager(tmp_path, source)
    source.failure = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await stager.stage(DIGEST, TABLE)
    assert list((tmp_path / "scratch").iterdir()) == []
    source.failure = None
    assert not (await stager.stage(DIGEST, TABLE)).was_staged


async def test_a_rank_above_the_engine_is_refused(tmp_path: Path):
    with pytest.raises(BadAdapter, match="rank 5"):
        await make_stager(tmp_path, SmallAdapters(rank=5)).stage(DIGEST, TABLE)


async def test_a_resident_copy_is_not_dropped(tmp_path: Path):
    stager = make_stager(tmp_path, SmallAdapters(), resident=frozenset({DIGEST}))
    await stager.stage(DIGEST, TABLE)
    stager.drop(DIGEST, TABLE.fingerprint())
    assert stager.digests(TABLE.fingerprint()) == (DIGEST,)
