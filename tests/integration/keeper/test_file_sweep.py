from typing import Any

from openmint.adapters.keys import checkpoint_key, dataset_key, evaluation_key, revision_key
from openmint.adapters.store import Store
from openmint.catalog import Catalog, datasets, evaluations, revisions
from openmint.catalog.rows import EvaluationDraft, RevisionState
from openmint.identifiers import digest_from_hex, new_id
from openmint_keeper import file_sweep

DIGEST = digest_from_hex("1" * 64)
OTHER = digest_from_hex("2" * 64)
DAY_S = 86_400


async def test_files_that_a_row_names_stay(tenancy: Any, catalog: Catalog, store: Store) -> None:
    revision = await tenancy.exported(DIGEST)
    job = await tenancy.running()
    await tenancy.checkpoint(job, 1)
    evaluation = EvaluationDraft(new_id(), "parity", True, "", {}, {})
    async with catalog.transaction() as conn:
        await datasets.record_dataset(conn, "acme", DIGEST, 1, 2, dataset_key("acme", DIGEST))
        await evaluations.insert_evaluations(conn, revision.revision_id, 1, [evaluation])
    keys = [
        revision_key(DIGEST, "adapter_model.safetensors"),
        revision_key(DIGEST, "manifest.json"),
        checkpoint_key(job.job_id, job.fence, 1),
        dataset_key("acme", DIGEST),
        evaluation_key(evaluation.evaluation_id),
    ]
    for key in keys:
        await store.put_bytes(key, b"named")
    assert await file_sweep.sweep_orphans(catalog, store, 0) == 0
    assert await store.list("") == sorted(keys)


async def test_files_that_no_row_names_go_after_their_time(tenancy: Any, catalog: Catalog, store: Store) -> None:
    job = await tenancy.running()
    keys = [
        revision_key(OTHER, "adapter_model.safetensors"),
        checkpoint_key(job.job_id, 7, 1),
        dataset_key("acme", OTHER),
        evaluation_key(new_id()),
        "revisions/not-a-digest/file",
    ]
    for key in keys:
        await store.put_bytes(key, b"left behind")
    await store.put_bytes("somebody-elses/file", b"not ours")
    assert await file_sweep.sweep_orphans(catalog, store, DAY_S) == 0
    assert len(await store.list("")) == len(keys) + 1
    await tenancy.execute("update unnamed_files set first_seen_at = first_seen_at - interval '2 days'")
    assert await file_sweep.sweep_orphans(catalog, store, DAY_S) == len(keys)
    assert await store.list("") == ["somebody-elses/file"]


async def test_a_file_that_is_named_in_time_stays(tenancy: Any, catalog: Catalog, store: Store) -> None:
    await store.put_bytes(revision_key(DIGEST, "manifest.json"), b"before its row")
    await file_sweep.sweep_orphans(catalog, store, DAY_S)
    await tenancy.execute("update unnamed_files set first_seen_at = first_seen_at - interval '2 days'")
    await tenancy.exported(DIGEST)
    assert await file_sweep.sweep_orphans(catalog, store, DAY_S) == 0
    assert await store.exists(revision_key(DIGEST, "manifest.json"))
    async with catalog.connection() as conn:
        assert await conn.fetchval("select count(*) from unnamed_files") == 0


async def test_of_an_ended_job_the_last_checkpoint_stays(tenancy: Any, catalog: Catalog, store: Store) -> None:
    job = await tenancy.running()
    for step in (1, 2, 3):
        await tenancy.checkpoint(job, step)
        await store.put_bytes(checkpoint_key(job.job_id, job.fence, step), b"weights")
    assert await file_sweep.drop_superseded_checkpoints(catalog, store, 0) == 0
    await tenancy.complete(job)
    assert await file_sweep.drop_superseded_checkpoints(catalog, store, 3600) == 0
    assert await file_sweep.drop_superseded_checkpoints(catalog, store, 0) == 2
    assert await store.list("checkpoints/") == [checkpoint_key(job.job_id, job.fence, 3)]


async def test_a_retired_revision_leaves_a_tombstone_and_no_files(tenancy: Any, catalog: Catalog, store: Store) -> None:
    revision = await tenancy.retired(DIGEST)
    await store.put_bytes(revision_key(DIGEST, "manifest.json"), b"{}")
    assert await file_sweep.delete_retired_revisions(catalog, store, 3600) == 0
    assert await file_sweep.delete_retired_revisions(catalog, store, 0) == 1
    assert await store.list("") == []
    async with catalog.connection() as conn:
        assert (await revisions.find_revision(conn, revision.revision_id)).state is RevisionState.DELETED


async def test_bytes_that_another_revision_shares_stay(tenancy: Any, catalog: Catalog, store: Store) -> None:
    await tenancy.retired(DIGEST)
    await tenancy.exported(DIGEST)
    await store.put_bytes(revision_key(DIGEST, "manifest.json"), b"{}")
    assert await file_sweep.delete_retired_revisions(catalog, store, 0) == 1
    assert await store.exists(revision_key(DIGEST, "manifest.json"))
