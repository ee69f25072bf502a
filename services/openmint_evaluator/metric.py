"""The rules of a job on its held-out score: against the base, and against the revision in production. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from openmint.events import EvaluationSpec
from openmint_evaluator.checks import Check, at_least, at_most, figure, not_checked
from openmint_evaluator.comparison import Comparison, RowScore, compare, standard_error, total_score


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """One model's scores on the held-out rows, in the order of the rows; `subject` names the model for a reader."""

    subject: str
    rows: Sequence[RowScore]


def metric_checks(
    spec: EvaluationSpec,
    higher_is_better: bool,
    unit: str,
    candidate: ScoredRows,
    base: ScoredRows,
    production: ScoredRows | None,
) -> list[Check]:
    """Apply the job's rules. `production` is None when nothing is in production (or the candidate itself is)."""
    checks = [_against_base(spec, higher_is_better, unit, candidate, base)]
    allowed = spec.max_loss_against_production
    if production is None:
        checks.append(not_checked("against_production", "no other revision is in production to compare with"))
    elif allowed is None:
        against = compare(candidate.rows, production.rows, higher_is_better)
        told = _told(unit, candidate, production, against)
        checks.append(not_checked("against_production", f"{told}; the job sets no bound on it"))
    else:
        checks.append(_against_production(allowed, higher_is_better, unit, candidate, production))
    return checks


def _against_base(
    spec: EvaluationSpec, higher_is_better: bool, unit: str, candidate: ScoredRows, base: ScoredRows
) -> Check:
    against = compare(candidate.rows, base.rows, higher_is_better)
    return at_least(
        "gain_over_base",
        against.gain,
        spec.min_gain_over_base,
        unit,
        f"{_told(unit, candidate, base, against)}; gain over {base.subject}",
        "the revision does not gain what the job asks for",
    )


def _against_production(
    allowed: float, higher_is_better: bool, unit: str, candidate: ScoredRows, production: ScoredRows
) -> Check:
    against = compare(candidate.rows, production.rows, higher_is_better)
    return at_most(
        "loss_against_production",
        -against.gain,
        allowed,
        unit,
        f"{_told(unit, candidate, production, against)}; loss against {production.subject}",
        "the revision is worse than the one in production by more than the job allows",
    )


def _told(unit: str, ours: ScoredRows, theirs: ScoredRows, against: Comparison) -> str:
    significance = "significant" if against.is_significant else "not significant"
    return (
        f"{ours.subject} scores {figure(total_score(ours.rows))} ± {figure(standard_error(ours.rows))} {unit} on "
        f"{against.rows} held-out rows, {theirs.subject} {figure(total_score(theirs.rows))}; the difference is "
        f"{figure(against.gain)} ± {figure(against.standard_error)}, {significance} (p = {figure(against.p_value)}, "
        f"{against.method})"
    )
