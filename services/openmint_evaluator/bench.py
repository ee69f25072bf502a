"""What an evaluation measures with: probes, encoded held-out rows, and the reference's logprobs of every candidate."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from openmint.catalog.rows import Base, Revision
from openmint.errors import BadAdapter, BadDataset
from openmint_evaluator.checks import Check, not_checked
from openmint_evaluator.encoded_rows import MAX_ROW_TOKENS, EncodedDataset
from openmint_evaluator.evaluation_files import AdapterFolder, EvaluationFiles
from openmint_evaluator.gate import DOUBLE_STRENGTH, HALF_STRENGTH, Reference
from openmint_evaluator.held_out import MAX_ROWS, parse_rows, spread_rows
from openmint_evaluator.probes import BUILT_IN, Probe, choose_probes
from openmint_evaluator.reference_cache import ReferenceLogprobs
from openmint_evaluator.reference_client import ReferenceChild, ReferencePool
from openmint_evaluator.subject import Subject


@dataclass(frozen=True, slots=True)
class Bench:
    """Ready to measure. `notes` are lines of the report about what was left out."""

    folder: AdapterFolder
    probes: tuple[Probe, ...]
    probe_digest: str
    held_out: EncodedDataset | None
    reference: Reference
    reference_text: str
    notes: tuple[Check, ...]

    @property
    def probe_tokens(self) -> int:
        """Scored tokens of all probes."""
        return sum(probe.scored_tokens for probe in self.probes)


class BenchBuilder:
    """Prepares benches; keeps what the next one needs again."""

    def __init__(self, files: EvaluationFiles, references: ReferencePool, probe_tokens: int) -> None:
        self._files = files
        self._references = references
        self._probe_tokens = probe_tokens
        self._logprobs = ReferenceLogprobs()

    async def build(self, subject: Subject, scratch: Path) -> Bench:
        """Fetch, encode, and compute the reference.

        Raises: BadAdapter, BadDataset (the revision is to be rejected); StoreUnavailable, ReferenceFailed.
        """
        notes: list[Check] = []
        folder = await self._files.fetch_adapter(subject.digest, subject.base, scratch / "revision")
        child = await self._references.child(Path(subject.base.locator))
        held_out = await self._encode_held_out(subject, child, notes)
        rows = [] if held_out is None else [(*row.prompt_ids, *row.completion_ids) for row in held_out.rows]
        probes = choose_probes(await child.encode_texts(BUILT_IN), rows, self._probe_tokens)
        digest = _digest_of(probes)
        base_digest = subject.base.digest
        (base,) = await self._logprobs.compute(child, base_digest, None, probes, digest)
        right, half, double = await self._logprobs.compute(
            child, base_digest, (subject.digest, folder.path), probes, digest, (1.0, 0.5, 2.0)
        )
        alternatives = {HALF_STRENGTH: half, DOUBLE_STRENGTH: double}
        others = (("production", subject.production), ("the neighbouring", subject.neighbour))
        for what, other in others:
            if other is None:
                continue
            name = f"{what} revision {other.number}"
            try:
                alternatives[name] = await self._other_logprobs(other, subject.base, child, probes, digest, scratch)
            except BadAdapter as error:
                notes.append(not_checked(f"against {name}", f"its own folder can't be read: {error.detail}"))
        return Bench(
            folder=folder,
            probes=tuple(probes),
            probe_digest=digest,
            held_out=held_out,
            reference=Reference(right=right, base=base, alternatives=alternatives),
            reference_text=await child.describe(),
            notes=tuple(notes),
        )

    async def _encode_held_out(
        self, subject: Subject, child: ReferenceChild, notes: list[Check]
    ) -> EncodedDataset | None:
        if subject.held_out_problem:
            raise BadDataset(subject.held_out_problem)
        dataset = subject.held_out
        if dataset is None:
            return None
        rows = parse_rows(await self._files.read_dataset(dataset.key), dataset.digest)
        chosen = spread_rows(rows)
        if len(chosen) < len(rows):
            left_out = len(rows) - len(chosen)
            notes.append(not_checked("more_rows", f"{left_out} of {len(rows)} held-out rows: at most {MAX_ROWS} count"))
        labels = subject.spec.labels if subject.spec.scorer == "label" else []
        encoded = await child.encode_rows(chosen, labels, MAX_ROW_TOKENS)
        if encoded.left_out:
            notes.append(
                not_checked(
                    "left_out", f"{encoded.left_out} held-out rows: no prompt, or above {MAX_ROW_TOKENS} tokens"
                )
            )
        return encoded

    async def _other_logprobs(
        self, other: Revision, base: Base, child: ReferenceChild, probes: list[Probe], digest: str, scratch: Path
    ) -> list[float]:
        assert other.digest is not None
        folder = await self._files.fetch_adapter(other.digest, base, scratch / f"other-{other.number}")
        revision = (other.digest, folder.path)
        return (await self._logprobs.compute(child, base.digest, revision, probes, digest))[0]


def _digest_of(probes: list[Probe]) -> str:
    text = "\n".join(" ".join(str(token) for token in probe.token_ids) for probe in probes)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
