"""What an export needs of a checkpoint file: its LoRA tensors and the metadata that says how they are scaled."""

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openmint.adapters.safetensors_header import SafetensorsHeader, TensorEntry, read_header_of
from openmint.errors import BadAdapter, OpenmintError

ADAPTER_PREFIX = "adapter."
METADATA_KEY = "openmint"
MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 1_000_000


class BrokenCheckpoint(OpenmintError):
    """A checkpoint's bytes are not those that its row in the catalogue names, or can't be read."""

    code = "broken_checkpoint"


class CheckpointMeta(BaseModel):
    """The metadata, as far as an export is concerned."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    base: str
    base_digest: str
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    targets: list[str] = Field(min_length=1)
    step: int


def verify_checkpoint(path: Path, sha256: bytes) -> None:
    """Compare a file with what the catalogue says of it. Raises: BrokenCheckpoint."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if found != sha256:
        raise BrokenCheckpoint(f"the checkpoint has sha256 {found.hex()}, not {sha256.hex()}")


def read_checkpoint_header(descriptor: int) -> tuple[CheckpointMeta, dict[tuple[str, str], TensorEntry]]:
    """The metadata, and the LoRA tensors as (module, half) -> place; optimiser state is left out.

    Raises: BrokenCheckpoint.
    """
    try:
        header = read_header_of(
            descriptor, "the checkpoint", max_header_bytes=MAX_HEADER_BYTES, max_tensors=MAX_TENSORS
        )
        meta = CheckpointMeta.model_validate_json(header.metadata.get(METADATA_KEY, ""))
    except (BadAdapter, ValidationError) as error:
        raise BrokenCheckpoint(f"{os.fstat(descriptor).st_size} bytes that are no checkpoint: {error}") from error
    return meta, _adapter_entries(header)


def _adapter_entries(header: SafetensorsHeader) -> dict[tuple[str, str], TensorEntry]:
    entries: dict[tuple[str, str], TensorEntry] = {}
    for tensor in header.tensors:
        if tensor.name.startswith(ADAPTER_PREFIX):
            module, _, half = tensor.name.removeprefix(ADAPTER_PREFIX).rpartition(".")
            entries[module, half] = tensor
    if not entries:
        raise BrokenCheckpoint("the checkpoint holds no adapter")
    return entries
