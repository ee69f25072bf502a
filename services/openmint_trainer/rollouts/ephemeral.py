"""A policy's present weights as a revision that only its own rollouts use.

It goes the way of every revision: a checked and signed PEFT folder in the store, under its digest. The catalogue never
names it; its manifest says whose it is, so no other revision has its digest and its files may be deleted with it.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from safetensors.torch import save_file

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest
from openmint.adapters.peft_folder import LoraSettings, LoraTensors, opened, write_peft_folder
from openmint.adapters.revision_files import delete_revision_files, put_revision_folder, sign_folder
from openmint.adapters.safetensors_header import read_header_of
from openmint.adapters.signing import SigningKey
from openmint.adapters.store import Store
from openmint.bases import BaseFacts
from openmint_trainer.banks import AdapterShape
from openmint_trainer.executor import Executor, TrainedPolicy
from openmint_trainer.rollouts.contract import RolloutOwner, Snapshot


@dataclass(frozen=True, slots=True)
class EphemeralRevision:
    """A revision that is in the store, for as long as its rollouts last."""

    revision_id: UUID
    digest: str
    rank: int
    adapter_bytes: int


def write_snapshot(executor: Executor, policy: TrainedPolicy, path: Path) -> None:
    """Write a policy's float32 matrices as they are now. Called from the training thread."""
    bank = executor.banks.bank_of(policy.slot)
    tensors = {
        f"{module}.{half}": matrix.detach().cpu().clone()
        for module in policy.slot.paths
        for half, matrix in zip(("lora_A", "lora_B"), bank.matrices("masters", policy.slot, module), strict=True)
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


class EphemeralRevisions:
    """Puts snapshots into the store as revisions, and takes them out again."""

    def __init__(self, store: Store, key: SigningKey, base: BaseFacts, dtype: str) -> None:
        self._store = store
        self._key = key
        self._base = base
        self._dtype = dtype

    async def publish(self, snapshot: Snapshot) -> EphemeralRevision:
        """Raises: BadAdapter when the weights may not reach an engine; StoreUnavailable."""
        assert snapshot.path is not None and snapshot.shape is not None
        owner = snapshot.owner
        with tempfile.TemporaryDirectory(dir=snapshot.path.parent) as scratch:
            folder = Path(scratch)
            await asyncio.to_thread(self._write, snapshot.path, snapshot.shape, folder)
            # These are our own bytes, so they need no child with limits; nothing is signed that was not checked.
            facts = await asyncio.to_thread(check_adapter_folder, folder, self._base)
            manifest = Manifest.of(facts, self._base.digest, rollout_of=_claim_and_step(owner, snapshot.step))
            digest = sign_folder(folder, manifest, self._key)
            await put_revision_folder(self._store, digest, folder)
        revision_id = uuid5(owner.job_id, f"{owner.fence}/{snapshot.step}")
        return EphemeralRevision(revision_id, digest, manifest.rank, manifest.adapter_bytes)

    async def withdraw(self, revision: EphemeralRevision) -> None:
        """Delete its files. What a crash leaves behind is swept as every file that no row names."""
        await delete_revision_files(self._store, revision.digest)

    def _write(self, path: Path, shape: AdapterShape, folder: Path) -> None:
        with opened(path) as descriptor:
            header = read_header_of(descriptor, path.name)
            entries = {
                (module, half): tensor
                for tensor in header.tensors
                for module, _, half in (tensor.name.rpartition("."),)
            }
            settings = LoraSettings.of(self._base.name, shape.rank, shape.alpha, shape.targets, entries)
            write_peft_folder(folder, LoraTensors(descriptor, entries), settings, self._dtype)


def _claim_and_step(owner: RolloutOwner, step: int) -> str:
    return f"{owner.job_id}/{owner.fence}/{step}"
