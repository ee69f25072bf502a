"""What an evaluation leaves behind: JSON for programs, plain words for people."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from openmint_evaluator.checks import Check

MAX_SUMMARY_CHARS = 2000
"""A summary travels in an event; the report itself lies in the store."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ServingPath(_Part):
    """The engine that answered: a score holds for this build and dtype."""

    pool: str
    engine: str
    boot_id: str
    build: str
    dtype: str


ScoreSubject = Literal["revision", "base", "production"]


class ScoreBasis(_Part):
    """What a score rests on; two scores with a different basis are not comparable."""

    subject: ScoreSubject
    score: float
    standard_error: float | None
    unit: str
    higher_is_better: bool
    rows: int
    weight: float
    revision_digest: str | None
    base: str
    base_digest: str
    targets: tuple[str, ...]
    prompt_rendering: str
    scorer: str
    labels: tuple[str, ...] = ()
    dataset_digest: str
    serving_path: ServingPath
    row_scores: tuple[tuple[float, float], ...] = ()
    """(value, weight) per row, so that a later evaluation compares row by row without measuring again."""
    was_cached: bool = False


class Report(_Part):
    """One evaluation of one revision."""

    format: Literal[1] = 1
    evaluation_id: UUID
    revision_id: UUID
    policy: str
    number: int
    step: int
    digest: str
    base: str
    base_digest: str
    rank: int
    targets: tuple[str, ...]
    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    scores: tuple[ScoreBasis, ...] = ()
    probe_tokens: int = 0
    probe_digest: str = ""
    gate_path: ServingPath | None = None
    serve_path: ServingPath | None = None
    reference: str = ""
    promotion: str = ""
    attempt: int = 1
    started_at: datetime
    evaluation_ms: float = 0.0

    def as_json(self) -> bytes:
        """The bytes that are stored."""
        return self.model_dump_json(indent=1).encode()


def render_text(report: Report) -> str:
    """The whole report for reading."""
    verdict = "ELIGIBLE" if report.passed else "REJECTED"
    lines = [
        f"{report.policy}@{report.number} (step {report.step}, {report.digest}): {verdict}",
        f"base {report.base} ({report.base_digest}), rank {report.rank} on {', '.join(report.targets) or 'no modules'}",
        "",
        "Why:",
        *(f"  - {reason}" for reason in report.reasons),
        "",
        "Measured:",
        *(f"  [{check.outcome}] {check.words}" for check in report.checks if check.outcome != "not checked"),
    ]
    unchecked = [check for check in report.checks if check.outcome == "not checked"]
    if unchecked:
        lines += ["", "Not checked:", *(f"  - {check.name}: {check.words}" for check in unchecked)]
    if report.scores:
        lines += ["", "What the scores rest on:", *(f"  - {_score_line(score)}" for score in report.scores)]
    for what, path in (("Gate engine", report.gate_path), ("Serving engine", report.serve_path)):
        if path is not None:
            lines.append(f"{what}: {_path_text(path)}")
    if report.reference:
        lines.append(f"Reference: {report.reference}, {report.probe_tokens} probe tokens ({report.probe_digest})")
    if report.promotion:
        lines.append(f"Promotion: {report.promotion}")
    return "\n".join(lines) + "\n"


def summarise(report: Report) -> str:
    """The verdict in a few sentences, for the fact on the bus."""
    head = "Eligible" if report.passed else "Rejected"
    parts = [f"{head}: {'; '.join(report.reasons)}."]
    weak = [check.words for check in report.checks if check.outcome == "too weak to tell"]
    unchecked = [f"{check.name} ({check.words})" for check in report.checks if check.outcome == "not checked"]
    if weak:
        parts.append(f"Too weak to tell: {'; '.join(weak)}.")
    if unchecked:
        parts.append(f"Not checked: {'; '.join(unchecked)}.")
    text = " ".join(parts)
    return text if len(text) <= MAX_SUMMARY_CHARS else text[: MAX_SUMMARY_CHARS - 1] + "…"


def _score_line(score: ScoreBasis) -> str:
    error = "" if score.standard_error is None else f" ± {score.standard_error:.3g}"
    cached = ", measured earlier" if score.was_cached else ""
    return (
        f"{score.subject} {score.revision_digest or score.base_digest}: {score.score:.4g}{error} {score.unit}, scorer "
        f"{score.scorer}, {score.rows} rows of {score.dataset_digest}, prompts {score.prompt_rendering}, "
        f"{_path_text(score.serving_path)}{cached}"
    )


def _path_text(path: ServingPath) -> str:
    return f"engine {path.engine} of pool {path.pool}, {path.build}, {path.dtype}, boot {path.boot_id}"
