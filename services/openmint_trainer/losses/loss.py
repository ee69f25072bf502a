"""A loss as the registry holds it: its function, its settings with their bounds, and the inputs it can't do without."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from openmint.errors import BadRequest
from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.reference_kl import reference_kl


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that a job may set: its default, and the bounds (inclusive) outside of which it means nothing."""

    default: float
    at_least: float = -math.inf
    at_most: float = math.inf


CLIP_LOW, CLIP_HIGH, KL_COEF = "clip_low_threshold", "clip_high_threshold", "kl_coef"


def clip_settings(low: float, high: float) -> dict[str, Setting]:
    """Thresholds of the ratio itself (not distances from 1), under the names of the Tinker API."""
    return {CLIP_LOW: Setting(low, at_least=0.0), CLIP_HIGH: Setting(high, at_least=0.0)}


KL_SETTING: dict[str, Setting] = {KL_COEF: Setting(0.0, at_least=0.0)}
"""Of the losses that can hold a policy to the base; 0 is off."""

NO_CONFIG: Mapping[str, float] = {}

Compute = Callable[[LossInputs, Mapping[str, float]], LossOutputs]
"""A loss's formula. The config is complete and checked."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name in `openmint_trainer.losses.LOSSES`."""

    name: str
    compute: Compute
    settings: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    needs: tuple[str, ...] = ()
    """Which optional tensors of LossInputs every row must carry."""
    rows_per_unit: int = 1
    """How many neighbouring rows belong together; 2 for pairs."""
    takes_many_targets: bool = False
    """Whether [N, K] targets and weights are understood."""

    def resolve(self, config: Mapping[str, float]) -> dict[str, float]:
        """Every setting, the given ones over the defaults.

        Raises: BadRequest naming the field `loss.config.<key>`: unknown, not a number, not finite or out of bounds.
        """
        for key in config:
            if key not in self.settings:
                known = ", ".join(sorted(self.settings)) or "none"
                raise BadRequest(
                    f"loss {self.name} has no setting {key[:80]!r}; known are {known}", field=f"loss.config.{key[:80]}"
                )
        resolved = {key: _checked(key, config.get(key, s.default), s) for key, s in self.settings.items()}
        if CLIP_LOW in resolved and resolved[CLIP_LOW] > resolved[CLIP_HIGH]:
            raise BadRequest(
                f"{CLIP_LOW} {resolved[CLIP_LOW]} is above {CLIP_HIGH} {resolved[CLIP_HIGH]}",
                field=f"loss.config.{CLIP_LOW}",
            )
        return resolved

    def needs_with(self, config: Mapping[str, float]) -> tuple[str, ...]:
        """Which optional tensors the rows must carry under this config, given or complete."""
        has_kl = config.get(KL_COEF, 0.0) > 0 and "reference_logprobs" not in self.needs
        return (*self.needs, "reference_logprobs") if has_kl else self.needs

    def __call__(self, inputs: LossInputs, config: Mapping[str, float] = NO_CONFIG) -> LossOutputs:
        """Raises: BadRequest for a config that `resolve` refuses and for rows that lack what the loss needs."""
        settings = self.resolve(config)
        for name in self.needs_with(settings):
            if getattr(inputs, name) is None:
                raise BadRequest(f"loss {self.name} needs {name} in every row", field="loss.name")
        if inputs.weights.dim() == 2 and not self.takes_many_targets:
            raise BadRequest(f"loss {self.name} takes one target per position", field="loss.name")
        output = self.compute(inputs, settings)
        if settings.get(KL_COEF):
            penalty = reference_kl(inputs)
            loss = output.loss + settings[KL_COEF] * penalty.loss
            output = replace(output, loss=loss, metrics={**output.metrics, **penalty.metrics})
        return output


def _checked(key: str, value: object, setting: Setting) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"{key} is {str(value)[:40]}, not a finite number", field=f"loss.config.{key}")
    if not setting.at_least <= value <= setting.at_most:
        bounds = f"at least {setting.at_least}"
        if math.isfinite(setting.at_most):
            bounds += f" and at most {setting.at_most}"
        raise BadRequest(f"{key} is {value}; it must be {bounds}", field=f"loss.config.{key}")
    return float(value)
