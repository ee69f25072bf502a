"""One line of a verdict: what was measured, against which bound, and whether it holds."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["holds", "fails", "too weak to tell", "not checked"]


class Check(BaseModel):
    """A rule applied to one measurement. `words` says it to a person, with the reason when it does not hold."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True, ser_json_inf_nan="null")

    name: str
    outcome: Outcome
    words: str
    measured: float | None = None
    relation: Literal["<=", ">=", ""] = ""
    bound: float | None = None
    unit: str = ""


def at_most(name: str, measured: float, bound: float, unit: str, what: str, why_not: str) -> Check:
    """A measurement that must not exceed its bound; NaN fails."""
    holds = measured <= bound
    words = f"{what}: {figure(measured)} {unit}, at most {figure(bound)}"
    return Check(
        name=name,
        outcome="holds" if holds else "fails",
        words=words if holds else f"{words}; {why_not}",
        measured=measured,
        relation="<=",
        bound=bound,
        unit=unit,
    )


def at_least(name: str, measured: float, bound: float, unit: str, what: str, why_not: str) -> Check:
    """A measurement that must reach its bound; NaN fails."""
    holds = measured >= bound
    words = f"{what}: {figure(measured)} {unit}, at least {figure(bound)}"
    return Check(
        name=name,
        outcome="holds" if holds else "fails",
        words=words if holds else f"{words}; {why_not}",
        measured=measured,
        relation=">=",
        bound=bound,
        unit=unit,
    )


def not_checked(name: str, words: str) -> Check:
    """Something that the gate could not or need not look at; the report says so."""
    return Check(name=name, outcome="not checked", words=words)


def figure(value: float) -> str:
    """A number for reading: three significant digits."""
    return f"{value:.3g}"
