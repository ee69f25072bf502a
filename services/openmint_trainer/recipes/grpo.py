"""Group-relative policy optimisation: several samples of each prompt, compared with each other.

The recipe says which rollouts are due, refuses what is too old, and turns episodes into weighted rows. Who samples and
who rewards is not its business.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from openmint.errors import BadRequest, OpenmintError
from openmint.events import RolloutSpec, TrainRequested
from openmint_trainer.adam import AdamParams, params_at
from openmint_trainer.advantages import group_advantages, has_no_signal
from openmint_trainer.checkpoints import DataCursor
from openmint_trainer.losses import find_loss
from openmint_trainer.losses.loss import CLIP_HIGH, CLIP_LOW, KL_COEF
from openmint_trainer.rollouts.episodes import Episode, RolloutBatch
from openmint_trainer.rows import Portion, Row, make_row

ReferenceLogprobs = Callable[[Sequence[Row]], list[torch.Tensor]]


class StaleSamples(OpenmintError):
    """Samples are older than the job allows."""

    code = "stale_samples"


class GapTooWide(OpenmintError):
    """The trainer and the sampler do not agree on what the same tokens are worth."""

    code = "gap_too_wide"


class GroupRelativePolicyOptimisation:
    """Deals out one batch per optimizer step, from rollouts that were delivered.

    The loss is a sum over tokens; a batch's weights are divided by the number of its sampled tokens, so the gradient is
    that of the mean over tokens. With `kl_weight` k each token's advantage loses k * (d - mean of d), where
    d = sampler_logprobs - reference_logprobs: the penalty of the Tinker cookbook, which costs no second gradient.
    `kl_coef` adds the loss's own penalty instead, `losses.reference_kl`.
    Sampling runs `lag` steps ahead of learning: the rollouts of step b come from the weights after step b - 1 - lag,
    but never from weights before the last checkpoint, so that a resumed job repeats exactly what was cut off.
    Source: Shao et al. 2024, arXiv:2402.03300; the loss by name instead of its eq. 3.
    """

    name = "grpo"
    unit_rows = 1
    needs_reference = False
    """Its rows already carry what the base says of them, where that is wanted."""

    def __init__(self, spec: TrainRequested, lag: int, start_step: int, reference: ReferenceLogprobs) -> None:
        """Raises: BadRequest for an unknown loss or advantage, or a setting that the loss does not have."""
        self.loss, self.config = self.check(spec)
        self.rollout = spec.rollout or RolloutSpec()
        self.steps = spec.training.steps
        self.cursor = DataCursor()
        self.lag = min(lag, self.rollout.max_staleness)
        self._optimizer = spec.optimizer
        self._training = spec.training
        self._start_step = start_step
        self._reference = reference
        self._ready: dict[int, RolloutBatch] = {}
        self._measured: dict[str, float] = {}
        self._compared = ""
        self._gap_sum, self._gap_tokens = 0.0, 0

    @classmethod
    def check(cls, spec: TrainRequested) -> tuple[str, dict[str, float]]:
        """The loss that the job wants and all of its settings.

        Raises: BadRequest naming the field of an advantage or a setting that is not there.
        """
        rollout = spec.rollout or RolloutSpec()
        try:
            group_advantages([0.0, 1.0], rollout.advantage)
        except BadRequest as error:
            raise BadRequest(error.detail, field="rollout.advantage") from error
        loss = find_loss(rollout.loss)
        given: dict[str, float] = {}
        for field, setting in _SETTINGS.items():
            value: float | None = getattr(rollout, field)
            if value is None or (field == "kl_coef" and not value):
                continue
            if setting not in loss.settings:
                raise BadRequest(f"loss {loss.name} has no {field}", field=f"rollout.{field}")
            given[setting] = value
        return loss.name, loss.resolve(given)

    def due(self, step: int) -> tuple[int, ...]:
        """The steps whose rollouts are sampled from the weights after step `step`."""
        ahead = range(step + 1, min(step + 1 + self.lag, self.steps) + 1)
        return tuple(number for number in ahead if self._sampled_step(number) == step)

    def is_exact_at(self, step: int) -> bool:
        """Whether a checkpoint after this step resumes exactly: nothing of older weights is then still to be learnt."""
        return self.lag == 0 or self._is_planned(step)

    def deliver(self, batch: RolloutBatch) -> None:
        """Episodes have come."""
        self._ready[batch.number] = batch

    def is_ready(self, step: int) -> bool:
        """Whether the step after `step` has its episodes."""
        return step + 1 in self._ready

    def next_batch(self, step: int) -> list[Row]:
        """The rows of the step after `step`; none when every group's rewards were equal.

        Raises: StaleSamples when they were sampled too long ago.
        """
        batch = self._ready.pop(step + 1)
        staleness = step - batch.sampled_step
        if staleness > self.rollout.max_staleness:
            raise StaleSamples(
                f"samples of {batch.digest} are {staleness} optimizer steps old; rollout.max_staleness is "
                f"{self.rollout.max_staleness}"
            )
        self._compared = f"samples of {batch.digest} (weights of step {batch.sampled_step})"
        self._gap_sum, self._gap_tokens = 0.0, 0
        episodes = [episode for group in batch.groups for episode in group]
        flat = [group for group in batch.groups if has_no_signal([episode.reward for episode in group])]
        self._measured = {
            "reward": sum(episode.reward for episode in episodes) / len(episodes),
            "staleness": float(staleness),
            "skipped_groups": float(len(flat)),
            "sampled_tokens": float(sum(sum(episode.is_sampled) for episode in episodes)),
        }
        rows: list[Row] = []
        for group in batch.groups:
            values = group_advantages([episode.reward for episode in group], self.rollout.advantage)
            if any(values) or self._uses_reference:
                rows += [_row(episode, value) for episode, value in zip(group, values, strict=True)]
        if self._uses_reference:
            rows = self._with_kl(rows)
        total = sum(row.trained_tokens for row in rows)
        return [row.scaled(1.0 / total) for row in rows]

    def adam(self, step: int) -> AdamParams:
        """The update of step `step`, from 1."""
        return params_at(self._optimizer, step, self.steps)

    def observe(self, portion: Portion, logprobs: torch.Tensor) -> None:
        """Compare what the trainer gave for a portion's trained positions with what the sampler said."""
        sampled = [row.sampler_logprobs[row.weights != 0] for row in portion.rows if row.sampler_logprobs is not None]
        differences = (logprobs.float().cpu() - torch.cat(sampled)).abs()
        self._gap_sum += float(differences.sum())
        self._gap_tokens += differences.shape[0]

    def close_step(self, step: int, weights: Callable[[], str]) -> dict[str, float]:
        """What was measured of the step after `step`; called before its update.

        Raises: GapTooWide naming the two sides that were compared; `weights` gives the digest of the trainer's own.
        """
        if self._gap_tokens:
            gap = self._measured["gap"] = self._gap_sum / self._gap_tokens
            if not gap <= self.rollout.max_gap:
                raise GapTooWide(
                    f"|trainer logprob - sampler logprob| is {gap:.3g} nats in the mean of {self._gap_tokens} tokens, "
                    f"above rollout.max_gap = {self.rollout.max_gap:g}: {self._compared} were compared with the "
                    f"trainer's {weights()} (step {step})"
                )
        return self._measured

    def tell(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Means over a step's trained tokens: ratio, and where the loss has them clipped (a share) and reference_kl."""
        tokens = metrics.get("ratio_tokens", 0.0)
        if not tokens:
            return {}
        sums = {"ratio": "ratio_sum", "clipped": "clipped_tokens", "reference_kl": "reference_kl_sum"}
        return {name: metrics[key] / tokens for name, key in sums.items() if key in metrics}

    @property
    def _uses_reference(self) -> bool:
        return self.rollout.kl_weight > 0 or self.rollout.kl_coef > 0

    def _with_kl(self, rows: list[Row]) -> list[Row]:
        references = self._reference(rows)
        ratios = [_sampled(row) - reference for row, reference in zip(rows, references, strict=True)]
        used = torch.cat([ratio[row.weights != 0] for row, ratio in zip(rows, ratios, strict=True)])
        mean = used.mean()
        self._measured["kl"] = float(mean)
        return [
            replace(
                row,
                reference_logprobs=reference,
                advantages=_advantages(row) - self.rollout.kl_weight * (ratio - mean) * (row.weights != 0),
            )
            for row, reference, ratio in zip(rows, references, ratios, strict=True)
        ]

    def _sampled_step(self, number: int) -> int:
        newest = number - 1
        oldest = max(0, newest - self.lag)
        return next((step for step in range(newest, oldest, -1) if self._is_planned(step)), oldest)

    def _is_planned(self, step: int) -> bool:
        training = self._training
        return (
            step <= self._start_step
            or step % training.checkpoint_every_steps == 0
            or step in training.revision_at_steps
        )


_SETTINGS = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "beta": "beta", "kl_coef": KL_COEF}
"""Fields of RolloutSpec, and what the losses call them."""


def _row(episode: Episode, advantage: float) -> Row:
    sampled = [float(is_sampled) for is_sampled in episode.is_sampled]
    return make_row(
        episode.token_ids,
        sampled,
        sampler_logprobs=episode.logprobs,
        advantages=[advantage * weight for weight in sampled],
    )


def _sampled(row: Row) -> torch.Tensor:
    assert row.sampler_logprobs is not None
    return row.sampler_logprobs


def _advantages(row: Row) -> torch.Tensor:
    assert row.advantages is not None
    return row.advantages
