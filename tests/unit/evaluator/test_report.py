"""The report a person reads, against a golden copy. UPDATE_GOLDEN=1 rewrites it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from openmint_evaluator.checks import at_least, at_most, not_checked
from openmint_evaluator.report import MAX_SUMMARY_CHARS, Report, ScoreBasis, ServingPath, render_text, summarise

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluator_report.txt"

SERVE = ServingPath(pool="serve", engine="serve-1", boot_id="b" * 8, build="vllm 0.32.0", dtype="bfloat16")
REVISION = "sha256:" + "1" * 64
BASE = "sha256:" + "2" * 64


def make_report(reasons: tuple[str, ...], passed: bool) -> Report:
    checks = (
        at_most("parity_mean", 1.1e-5, 1e-4, "nats", "mean difference over 530 tokens", "they differ"),
        at_least("gain_over_base", 0.03, 0.08, "share of rows right", "gain over the base", "too little is gained"),
        not_checked("against_production", "no other revision is in production to compare with"),
    )
    score = ScoreBasis(
        subject="revision",
        score=0.74,
        standard_error=0.021,
        unit="share of rows right",
        higher_is_better=True,
        rows=420,
        weight=420.0,
        revision_digest=REVISION,
        base="smollm2-135m",
        base_digest=BASE,
        targets=("q_proj", "v_proj"),
        prompt_rendering="plain",
        scorer="label",
        dataset_digest="sha256:" + "3" * 64,
        serving_path=SERVE,
    )
    return Report(
        evaluation_id=UUID(int=1),
        revision_id=UUID(int=2),
        policy="acme/reviews",
        number=2,
        step=60,
        digest=REVISION,
        base="smollm2-135m",
        base_digest=BASE,
        rank=8,
        targets=("q_proj", "v_proj"),
        passed=passed,
        reasons=reasons,
        checks=checks,
        scores=(score,),
        probe_tokens=530,
        probe_digest="sha256:" + "4" * 64,
        gate_path=SERVE.model_copy(update={"pool": "gate-fp32", "engine": "gate-1", "dtype": "float32"}),
        serve_path=SERVE,
        reference="stock PEFT 0.21.2, torch 2.13.0, float32",
        promotion="not promoted: the verdict is rejected",
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


def test_report_says_in_plain_words_what_was_measured_and_why() -> None:
    text = render_text(make_report(("gain over the base: 0.03; too little is gained",), passed=False))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_report_survives_its_json() -> None:
    report = make_report(("it holds",), passed=True)
    assert Report.model_validate_json(report.as_json()) == report


def test_json_holds_no_nan() -> None:
    check = at_most("parity_mean", float("nan"), 1.0, "nats", "mean", "no number")
    report = make_report((), passed=False).model_copy(update={"checks": (check,)})
    body = json.loads(report.as_json(), parse_constant=lambda text: f"forbidden {text}")
    assert body["checks"][0]["measured"] is None
    assert body["checks"][0]["outcome"] == "fails"


def test_summary_names_what_was_not_checked_and_fits_an_event() -> None:
    summary = summarise(make_report(("it holds",), passed=True))
    assert summary.startswith("Eligible: it holds.")
    assert "Not checked: against_production" in summary
    assert len(summarise(make_report(("x" * 5000,), passed=False))) == MAX_SUMMARY_CHARS
