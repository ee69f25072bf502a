"""The checkpoint file: everything that resumes a policy's training exactly, in one safetensors file.

No slot number is in it, no pickle, and no time or host: the same state gives the same bytes.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from openmint.errors import OpenmintError

METADATA_KEY = "openmint"


class BrokenCheckpoint(OpenmintError):
    """A checkpoint can't be read back."""


class DataCursor(BaseModel):
    """Where in its data a policy is: the epoch, the next row in that epoch's order, and the seed of the order."""

    model_config = ConfigDict(frozen=True)

    epoch: int = 0
    index: int = 0
    order_seed: int = 0


class CheckpointMeta(BaseModel):
    """What of a policy's state is not a tensor."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    base: str
    base_digest: str
    rank: int
    alpha: float
    targets: list[str]
    step: int
    adam_step: int
    tokens: int
    cursor: DataCursor
    random_state: str
    """State of the policy's own generator, base64."""
    seed: int
    recipe: str
    last_loss: float | None = None

    def generator_state(self) -> torch.Tensor:
        """The state as torch.Generator.set_state takes it."""
        return torch.tensor(list(base64.b64decode(self.random_state)), dtype=torch.uint8)


def encode_generator(generator: torch.Generator) -> str:
    """A generator's state as it stands in the metadata."""
    return base64.b64encode(bytes(generator.get_state().tolist())).decode()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory; tensors by their names in the file, all float32."""

    meta: CheckpointMeta
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file that is complete and on disk."""

    path: Path
    sha256: bytes
    file_bytes: int


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> SavedFile:
    """Write, fsync and rename, so that `path` is either absent or whole."""
    temporary = path.with_name(path.name + ".partial")
    save_file(checkpoint.tensors, temporary, metadata={METADATA_KEY: checkpoint.meta.model_dump_json()})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").digest()
        file_bytes = file.seek(0, os.SEEK_END)
    temporary.rename(path)
    return SavedFile(path, digest, file_bytes)


def read_checkpoint(path: Path, sha256: bytes | None = None) -> Checkpoint:
    """Read a checkpoint back; with `sha256`, only if the file is the one that was written.

    Raises: BrokenCheckpoint naming the file.
    """
    try:
        if sha256 is not None:
            with path.open("rb") as raw:
                if hashlib.file_digest(raw, "sha256").digest() != sha256:
                    raise BrokenCheckpoint(f"checkpoint {path.name} has other bytes than its row in the catalogue says")
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "")
            meta = CheckpointMeta.model_validate_json(text)
            names: list[str] = list(file.keys())
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValidationError) as error:
        raise BrokenCheckpoint(f"checkpoint {path.name} can't be read: {error}") from error
    return Checkpoint(meta, tensors)
