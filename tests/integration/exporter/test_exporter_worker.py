"""The exporter's worker on a real Postgres and a real store."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.keys import revision_key, revision_prefix
from openmint.adapters.revision_files import fetch_revision_folder
from openmint.adapters.signing import TrustedKeys
from openmint.adapters.store import Store
from openmint.catalog import revisions
from openmint.catalog.rows import RevisionState
from openmint.errors import BadAdapter, Fenced, NotFound, StoreUnavailable
from openmint.identifiers import PolicyName
from openmint_exporter.import_folder import import_folder

EXPORTED, FAILED = RevisionState.EXPORTED, RevisionState.FAILED


async def outbox(catalog, event_type: str) -> list[dict]:
    async with catalog.connection() as conn:
        rows = await conn.fetch("select * from outbox order by 1")
    return [dict(row) for row in rows if event_type in str(dict(row))]


async def test_a_wanted_revision_is_exported_signed_and_committed(
    wanted, running_exporter, store, base_facts, tmp_path
):
    pending = await wanted.revision()
    async with running_exporter():
        exported = await wanted.until(pending.revision_id, EXPORTED)
    assert exported.number == 1 and exported.rank == 4 and exported.digest is not None
    assert exported.export_ms is not None and exported.export_ms > 0
    folder = tmp_path / "fetched"
    folder.mkdir()
    manifest = await fetch_revision_folder(store, exported.digest, folder, TrustedKeys(tmp_path / "keys" / "trusted"))
    assert manifest.dtype == "bfloat16" and manifest.targets == ["q_proj", "v_proj"]
    assert manifest.adapter_bytes == exported.adapter_bytes
    assert check_adapter_folder(folder, base_facts, needs_manifest=True).digest == exported.digest
    assert len(await outbox(wanted.catalog, "revision.exported")) == 1


@pytest.mark.slow
async def test_the_same_training_gives_the_same_digest_whoever_exports_it(wanted, running_exporter):
    first, second = await wanted.revision(seed=1), await wanted.revision(seed=1)
    async with running_exporter():
        digests = {(await wanted.until(r.revision_id, EXPORTED)).digest for r in (first, second)}
    third = await wanted.revision(seed=2)
    async with running_exporter():
        digests.add((await wanted.until(third.revision_id, EXPORTED)).digest)
    assert len(digests) == 2


def put_nan(tensors):
    tensors["adapter.model.layers.1.self_attn.v_proj.lora_B"][2, 3] = np.nan


def put_float32_beyond_bfloat16(tensors):
    tensors["adapter.model.layers.0.self_attn.q_proj.lora_A"][0, 0] = 3.4e38


def drop_a_half(tensors):
    del tensors["adapter.model.layers.0.self_attn.q_proj.lora_B"]


BAD = {
    "NaN": ({"spoil": put_nan}, "layers.1.self_attn.v_proj.lora_B", "user"),
    "overflow": ({"spoil": put_float32_beyond_bfloat16}, "layers.0.self_attn.q_proj.lora_A", "user"),
    "missing half": ({"spoil": drop_a_half}, "layers.0.self_attn.q_proj.lora_B", "user"),
    "another base": ({"base_digest": "sha256:" + "b" * 64}, "sha256:" + "b" * 64, "user"),
    "a tensor of no target": ({"rank": 4, "targets": ["q_proj"]}, "v_proj", "user"),
    "broken bytes": ({"sha256": bytes(32)}, "sha256", "server"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "words", "fault"), BAD.values(), ids=BAD)
async def test_what_may_not_reach_an_engine_fails_with_its_cause(
    changes, words, fault, wanted, running_exporter, store
):
    bad = await wanted.revision(**changes)
    good = await wanted.revision()
    async with running_exporter():
        failed = await wanted.until(bad.revision_id, FAILED, EXPORTED)
        await wanted.until(good.revision_id, EXPORTED)
    assert failed.state is FAILED and failed.cause is not None
    assert words in failed.cause.detail and failed.cause.fault == fault
    assert len({key.split("/")[1] for key in await store.list("revisions/")}) == 1


async def test_a_checkpoint_that_is_gone_fails_as_our_own_fault(wanted, running_exporter, store):
    pending = await wanted.revision()
    for key in await store.list("checkpoints/"):
        await store.delete(key)
    async with running_exporter():
        failed = await wanted.until(pending.revision_id, FAILED)
    assert failed.cause is not None and failed.cause.fault == "server"


class UnreliableStore(Store):
    """A real store whose first answers are lost."""

    failures = 3

    async def fetch_to(self, key, path, max_bytes=None):
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        return await super().fetch_to(key, path, max_bytes)


@pytest.mark.slow
async def test_a_store_that_is_away_for_a_while_is_waited_for(wanted, running_exporter, tmp_path):
    pending = await wanted.revision()
    unreliable = UnreliableStore.open((tmp_path / "store").as_uri())
    async with running_exporter(store=unreliable):
        exported = await wanted.until(pending.revision_id, EXPORTED)
    assert exported.fence == 1 and unreliable.failures == 0


class SlowStore(Store):
    """A store that does not come back in time."""

    async def fetch_to(self, key, path, max_bytes=None):
        await asyncio.sleep(60)
        return 0


@pytest.mark.slow
async def test_a_lease_is_held_while_an_export_takes_long_and_given_back_at_the_stop(
    wanted, running_exporter, tmp_path
):
    pending = await wanted.revision()
    slow = SlowStore.open((tmp_path / "store").as_uri())
    async with running_exporter(store=slow, lease_s=0.6, drain_s=0.1):
        held = await wanted.until(pending.revision_id, RevisionState.EXPORTING)
        await asyncio.sleep(1.0)
        async with wanted.catalog.connection() as conn:
            assert await revisions.claim_export(conn, "another", 5, pending.revision_id) is None
    async with wanted.catalog.connection() as conn:
        again = await revisions.claim_export(conn, "another", 5, pending.revision_id)
    assert again is not None and again.fence > held.fence and again.tries == held.tries


async def test_an_exporter_that_lost_its_claim_commits_nothing(wanted, running_exporter, tmp_path):
    pending = await wanted.revision()
    slow = SlowStore.open((tmp_path / "store").as_uri())
    async with running_exporter(store=slow, lease_s=30, drain_s=0.1):
        held = await wanted.until(pending.revision_id, RevisionState.EXPORTING)
        async with wanted.catalog.connection() as conn:
            await conn.execute("update revisions set lease_until = clock_timestamp() - interval '1 s'")
            taken = await revisions.claim_export(conn, "another", 30, pending.revision_id)
            assert taken is not None
            with pytest.raises(Fenced):
                await revisions.commit_export(
                    conn, held.revision_id, held.fence, "sha256:" + "c" * 64, {"rank": 1}, 1, 1.0
                )


# Import of a foreign folder


def write_foreign(folder: Path, base, **config) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    tensors = {}
    for module, (out_size, in_size) in base.modules.items():
        for half, shape in (("lora_A", (2, in_size)), ("lora_B", (out_size, 2))):
            tensors[f"base_model.model.{module}.{half}.weight"] = random.normal(0, 0.1, shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    body = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["v_proj", "q_proj"],
        "base_model_name_or_path": "hub/tiny",
        "lora_dropout": 0.1,
    }
    (folder / "adapter_config.json").write_text(json.dumps(body | config))
    (folder / "README.md").write_text("# an adapter")
    return folder


async def test_a_foreign_folder_becomes_a_revision(wanted, store, key, base_facts, tmp_path):
    source = write_foreign(tmp_path / "foreign", base_facts)
    policy = PolicyName("acme", "imported")
    revision = await import_folder(
        wanted.catalog, store, key, policy, "tiny", source, accepted_base_names=("hub/tiny",)
    )
    assert revision.state is EXPORTED and revision.number == 1 and revision.job_id is None
    folder = tmp_path / "fetched"
    folder.mkdir()
    await fetch_revision_folder(store, revision.digest, folder, TrustedKeys(tmp_path / "keys" / "trusted"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and config["target_modules"] == ["q_proj", "v_proj"]
    assert check_adapter_folder(folder, base_facts).dtype == "float32"


async def test_a_bad_foreign_folder_leaves_nothing_behind(wanted, store, key, base_facts, tmp_path):
    policy = PolicyName("acme", "imported")
    cases = {
        "adapter_model.bin": write_foreign(tmp_path / "a", base_facts, base_model_name_or_path="tiny"),
        "base_model_name_or_path": write_foreign(tmp_path / "b", base_facts),
        "use_dora": write_foreign(tmp_path / "c", base_facts, base_model_name_or_path="tiny", use_dora=True),
    }
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"\x80")
    for words, source in cases.items():
        with pytest.raises(BadAdapter, match=words):
            await import_folder(wanted.catalog, store, key, policy, "tiny", source)
    with pytest.raises(NotFound):
        await import_folder(wanted.catalog, store, key, policy, "unknown", cases["use_dora"])
    async with wanted.catalog.connection() as conn:
        assert await conn.fetchval("select count(*) from revisions") == 0
    assert await store.list("revisions/") == []


async def test_a_revision_without_a_manifest_in_the_store_is_not_there(store, key, tmp_path):
    digest = "sha256:" + "d" * 64
    await store.put_bytes(revision_key(digest, "adapter_config.json"), b"{}")
    assert await store.list(revision_prefix(digest))
    with pytest.raises(NotFound):
        await fetch_revision_folder(store, digest, tmp_path, TrustedKeys(tmp_path))
