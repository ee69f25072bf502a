"""From a checkpoint, or a foreign PEFT folder, to a checked and signed revision folder.

The same input gives the same bytes, hence the same digest, in whichever process and however often.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from openmint.adapters.facts import (
    TENSOR_PREFIX,
    WEIGHTS_FILE,
    AdapterFacts,
    AdapterLimits,
)
from openmint.adapters.inspection import Inspector
from openmint.adapters.manifest import Manifest
from openmint.adapters.peft_folder import LoraSettings, LoraTensors, opened, write_peft_folder
from openmint.adapters.revision_files import sign_folder
from openmint.adapters.safetensors_header import read_header_of
from openmint.adapters.signing import SigningKey
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter
from openmint_exporter.checkpoint_file import read_checkpoint_header, verify_checkpoint
from openmint_exporter.foreign_folder import copy_foreign_folder


@dataclass(frozen=True, slots=True)
class SignedFolder:
    """A revision that is ready to be stored."""

    path: Path
    digest: str
    manifest: Manifest
    facts: AdapterFacts


async def export_checkpoint(
    checkpoint: Path,
    sha256: bytes,
    base: BaseFacts,
    dtype: str,
    key: SigningKey,
    inspector: Inspector,
    folder: Path,
) -> SignedFolder:
    """Make the revision of a checkpoint file in an empty folder.

    Raises: BrokenCheckpoint; BadAdapter when what was trained may not reach an engine; InspectionFailed.
    """
    await asyncio.to_thread(verify_checkpoint, checkpoint, sha256)
    await asyncio.to_thread(_write_from_checkpoint, checkpoint, base, dtype, folder)
    return await _checked_and_signed(folder, base, key, inspector)


async def export_foreign(
    source: Path,
    base: BaseFacts,
    key: SigningKey,
    inspector: Inspector,
    scratch: Path,
    folder: Path,
    limits: AdapterLimits,
) -> SignedFolder:
    """Make the revision of a foreign PEFT folder in an empty folder, in its own dtype.

    `scratch` is another empty folder; the source is copied there first, so that nobody changes it after the checks.
    Raises: BadAdapter naming the culprit; InspectionFailed.
    """
    await asyncio.to_thread(copy_foreign_folder, source, scratch, base, limits)
    facts = await inspector.inspect(scratch, base, limits)
    await asyncio.to_thread(_write_from_peft, scratch, facts, folder)
    return await _checked_and_signed(folder, base, key, inspector)


async def _checked_and_signed(folder: Path, base: BaseFacts, key: SigningKey, inspector: Inspector) -> SignedFolder:
    facts = await inspector.inspect(folder, base)
    manifest = Manifest.of(facts, base.digest)
    return SignedFolder(folder, sign_folder(folder, manifest, key), manifest, facts)


def _write_from_checkpoint(checkpoint: Path, base: BaseFacts, dtype: str, folder: Path) -> None:
    with opened(checkpoint) as descriptor:
        meta, entries = read_checkpoint_header(descriptor)
        if (meta.base, meta.base_digest) != (base.name, base.digest):
            raise BadAdapter(
                f"the checkpoint is of base {meta.base} {meta.base_digest}, not of {base.name} {base.digest}",
                field="base_digest",
            )
        settings = LoraSettings.of(base.name, meta.rank, meta.alpha, meta.targets, entries)
        write_peft_folder(folder, LoraTensors(descriptor, entries), settings, dtype)


def _write_from_peft(source: Path, facts: AdapterFacts, folder: Path) -> None:
    with opened(source / WEIGHTS_FILE) as descriptor:
        header = read_header_of(descriptor, WEIGHTS_FILE)
        entries = {_module_and_half(tensor.name): tensor for tensor in header.tensors}
        settings = LoraSettings(facts.base, facts.rank, facts.alpha, facts.targets, facts.parameters)
        write_peft_folder(folder, LoraTensors(descriptor, entries), settings, facts.dtype)


def _module_and_half(name: str) -> tuple[str, str]:
    """Of the name of a tensor that has passed the checks."""
    module, _, half = name.removeprefix(TENSOR_PREFIX).removesuffix(".weight").rpartition(".")
    return module, half
