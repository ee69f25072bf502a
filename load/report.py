"""What a scenario reports: samples, ratios, and checks against bounds that were fixed before the run."""

import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from load.machine import Machine, describe_machine


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class Measurement(_Part):
    """Samples of one quantity; the median speaks, the spread says how far to trust it."""

    name: str
    unit: str
    samples: tuple[float, ...] = Field(min_length=1)

    @computed_field
    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @computed_field
    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile; of fewer than four samples, the smallest and the largest."""
        if len(self.samples) < 4:
            return min(self.samples), max(self.samples)
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return first, third


class Ratio(_Part):
    """One measurement over another, pair by pair: what is raced is interleaved, so that both meet the same noise."""

    name: str
    median: float
    spread: tuple[float, float]
    pairs: int


class Check(_Part):
    """A bound and whether it holds. A value of None could not be measured, which counts as not held."""

    name: str
    value: float | None
    bound: float
    relation: Literal["<=", ">="]
    note: str = ""

    @computed_field
    @property
    def holds(self) -> bool:
        """NaN and None never hold."""
        if self.value is None or math.isnan(self.value):
            return False
        return self.value <= self.bound if self.relation == "<=" else self.value >= self.bound


class LoadReport(_Part):
    """One run of one scenario."""

    scenario: str
    is_quick: bool
    seed: int
    machine: Machine
    started_at: datetime
    wall_s: float
    measurements: tuple[Measurement, ...]
    ratios: tuple[Ratio, ...]
    checks: tuple[Check, ...]
    missing_peers: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every bound holds; a report without checks shows nothing and holds nothing."""
        return bool(self.checks) and all(check.holds for check in self.checks)


class ReportBuilder:
    """Collects what a scenario finds while it runs."""

    def __init__(self, scenario: str, is_quick: bool, seed: int) -> None:
        self._scenario = scenario
        self._is_quick = is_quick
        self._seed = seed
        self._machine = describe_machine()
        self._started_at = datetime.now(UTC)
        self._measurements: dict[str, Measurement] = {}
        self._ratios: list[Ratio] = []
        self._checks: list[Check] = []
        self._missing: list[str] = []
        self._notes: list[str] = []

    def measure(self, name: str, unit: str, samples: Sequence[float]) -> Measurement:
        """Record samples; `name` is used once."""
        if name in self._measurements:
            raise ValueError(f"{name} was measured before")
        found = self._measurements[name] = Measurement(name=name, unit=unit, samples=tuple(samples))
        return found

    def compare(self, name: str, ours: Measurement, theirs: Measurement) -> Ratio:
        """Ours over theirs. Both have one sample per interleaved pair."""
        if len(ours.samples) != len(theirs.samples):
            raise ValueError(f"{ours.name} and {theirs.name} were not measured in pairs")
        quotients = [a / b for a, b in zip(ours.samples, theirs.samples, strict=True)]
        of_pairs = Measurement(name=name, unit="ratio", samples=tuple(quotients))
        ratio = Ratio(name=name, median=of_pairs.median, spread=of_pairs.spread, pairs=len(quotients))
        self._ratios.append(ratio)
        return ratio

    def check_at_most(self, name: str, value: float | None, bound: float, note: str = "") -> None:
        """A value that must not exceed its bound."""
        self._checks.append(Check(name=name, value=value, bound=bound, relation="<=", note=note))

    def check_at_least(self, name: str, value: float | None, bound: float, note: str = "") -> None:
        """A value that must reach its bound."""
        self._checks.append(Check(name=name, value=value, bound=bound, relation=">=", note=note))

    def miss_peer(self, peer: str, why: str, check: str, bound: float) -> None:
        """A peer that can't be had here: it is named, and the check that needed it does not hold."""
        self._missing.append(f"{peer}: {why}")
        self.check_at_least(check, None, bound, f"{peer} can't be had here")

    def note(self, text: str) -> None:
        """Something that a reader must know to read the figures."""
        self._notes.append(text)

    def build(self) -> LoadReport:
        """The report of everything collected."""
        return LoadReport(
            scenario=self._scenario,
            is_quick=self._is_quick,
            seed=self._seed,
            machine=self._machine,
            started_at=self._started_at,
            wall_s=round((datetime.now(UTC) - self._started_at).total_seconds(), 3),
            measurements=tuple(self._measurements.values()),
            ratios=tuple(self._ratios),
            checks=tuple(self._checks),
            missing_peers=tuple(self._missing),
            notes=tuple(self._notes),
        )


def render(report: LoadReport) -> str:
    """The report for reading."""
    machine = report.machine
    kind = "quick run" if report.is_quick else "full run"
    lines = [
        f"{report.scenario}: {kind}, seed {report.seed}, {report.wall_s:.1f} s",
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gib} GiB, load {machine.load_average}, "
        f"{machine.system}, Python {machine.python}" + "".join(f", {name}" for name in machine.accelerators),
        "",
    ]
    for found in report.measurements:
        low, high = found.spread
        lines.append(
            f"  {found.name:<44} {found.median:>12.4g} {found.unit}  ({low:.4g} to {high:.4g}, n={len(found.samples)})"
        )
    for ratio in report.ratios:
        low, high = ratio.spread
        lines.append(f"  {ratio.name:<44} {ratio.median:>12.4g} x  ({low:.4g} to {high:.4g}, {ratio.pairs} pairs)")
    lines.append("")
    for check in report.checks:
        value = "not measured" if check.value is None else f"{check.value:.4g}"
        verdict = "holds" if check.holds else "DOES NOT HOLD"
        note = f"  ({check.note})" if check.note else ""
        lines.append(f"  {verdict:<14} {check.name}: {value} {check.relation} {check.bound:.4g}{note}")
    lines += [f"  missing peer   {peer}" for peer in report.missing_peers]
    lines += [f"  note           {text}" for text in report.notes]
    return "\n".join(lines) + "\n"
