"""The manifest of a revision: what is digested and signed.

Its bytes are canonical JSON and hold no time, host, job or attempt, so that a second export gives the same digest. The
revision's digest is the sha256 of these bytes.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openmint.adapters.facts import AdapterFacts
from openmint.adapters.strict_json import NotStrict, read_strict_json
from openmint.errors import BadAdapter
from openmint.identifiers import Digest, Name

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ManifestTensor(_Strict):
    """One tensor: rows, columns, and the sha256 of its bytes."""

    shape: Annotated[list[int], Field(min_length=2, max_length=2)]
    sha256: Sha256


class ManifestFile(_Strict):
    """One file."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class ManifestHead(BaseModel):
    """A manifest without its tensors, for those who have verified its bytes and need no more: read in a millisecond."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    format: Literal[1]
    base: Name
    base_digest: Digest
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    files: dict[str, ManifestFile] = Field(min_length=1)

    @classmethod
    def of_signed(cls, raw: bytes) -> Self:
        """Read bytes whose signature holds. Raises: BadAdapter."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            raise BadAdapter(f"manifest.json: {first['loc']}: {first['msg']}", field="manifest.json") from error


class Manifest(_Strict):
    """What a revision is, byte for byte."""

    format: Literal[1] = 1
    base: Name
    base_digest: Digest
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    targets: list[str] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"]
    tensors: dict[str, ManifestTensor] = Field(min_length=1)
    files: dict[str, ManifestFile] = Field(min_length=1)
    no_op: bool = False
    """True when it is meant to change nothing; the gate then asks for that."""
    rollout_of: str = Field(default="", max_length=200)
    """Of an ephemeral revision: the claim and step that it samples for, so that it shares its digest with nothing that
    the catalogue names and may be deleted with its files. Left out of the bytes when empty."""

    @classmethod
    def of(cls, facts: AdapterFacts, base_digest: str, *, no_op: bool = False, rollout_of: str = "") -> Self:
        """The manifest of a folder that passed the checks."""
        return cls(
            base=facts.base,
            base_digest=base_digest,
            rank=facts.rank,
            alpha=facts.alpha,
            targets=sorted({*facts.targets, *facts.parameters}),
            dtype=facts.dtype,  # pyright: ignore[reportArgumentType] - validated by the model
            tensors={n: ManifestTensor(shape=list(t.shape), sha256=t.sha256) for n, t in facts.tensors.items()},
            files={n: ManifestFile(bytes=f.bytes, sha256=f.sha256) for n, f in facts.files.items()},
            no_op=no_op,
            rollout_of=rollout_of,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a manifest. Raises: BadAdapter naming the field, also when the bytes are not canonical."""
        try:
            body = read_strict_json(raw)
            manifest = cls.model_validate(body)
        except NotStrict as error:
            raise BadAdapter(f"manifest.json is {error}", field="manifest.json") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part)[:80] for part in first["loc"]) or "the manifest"
            raise BadAdapter(f"manifest.json: {where!r}: {first['msg']}", field="manifest.json") from error
        if manifest.canonical_bytes() != raw:
            raise BadAdapter("manifest.json is not in canonical form", field="manifest.json")
        return manifest

    def as_json(self) -> dict[str, Any]:
        """Plain values, as the catalogue keeps them."""
        body = self.model_dump(mode="json")
        if not self.rollout_of:
            del body["rollout_of"]
        return body

    def canonical_bytes(self) -> bytes:
        """Sorted keys, no blanks, UTF-8."""
        return json.dumps(
            self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    def digest(self) -> str:
        """The digest of the revision."""
        return digest_of(self.canonical_bytes())

    @property
    def adapter_bytes(self) -> int:
        """Of the files that it names."""
        return sum(file.bytes for file in self.files.values())


def digest_of(raw: bytes) -> str:
    """`sha256:…` of bytes."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"
