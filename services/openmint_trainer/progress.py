"""How far a job is, and how long it will take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from openmint.catalog.rows import Job
from openmint.events import JobProgressed

PUBLISH_EVERY_S = 1.0
"""A watcher's eye needs no more, and a tiny job would otherwise flood the bus with its steps."""

OWN_FIELDS = ("reward", "kl", "gap", "staleness")
"""Metrics of a recipe that have fields of their own in the fact."""


@dataclass(slots=True)
class Progress:
    """One job's steps since this process took it over."""

    job: Job
    steps: int
    now: Callable[[], float]
    step: int = 0
    tokens: int = 0
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the recipe tells of the last step beside its loss."""
    _started_s: float = 0.0
    _first_step: int = 0
    _first_tokens: int = 0
    _published_s: float = float("-inf")

    def start(self, step: int, tokens: int) -> None:
        """Training starts here; a resumed job starts in the middle."""
        self.step, self.tokens = step, tokens
        self._first_step, self._first_tokens = step, tokens
        self._started_s = self.now()

    def take_step(
        self, step: int, tokens: int, loss: float, metrics: Mapping[str, float] | None = None
    ) -> JobProgressed | None:
        """Note a step; returns the fact to publish, or None when the last one is too recent."""
        self.step, self.tokens, self.loss = step, tokens, loss
        self.metrics = metrics or {}
        if self.now() - self._published_s < PUBLISH_EVERY_S and step < self.steps:
            return None
        self._published_s = self.now()
        return self.fact()

    def fact(self) -> JobProgressed:
        """The state as the fact that tells it."""
        elapsed_s = max(self.now() - self._started_s, 1e-9)
        done = self.step - self._first_step
        return JobProgressed(
            tenant=self.job.tenant,
            job_id=self.job.job_id,
            policy=self.job.policy,
            base=self.job.base,
            step=self.step,
            steps=self.steps,
            loss=self.loss,
            metrics={name: value for name, value in self.metrics.items() if name not in OWN_FIELDS},
            tokens=self.tokens,
            tokens_per_s=round((self.tokens - self._first_tokens) / elapsed_s, 1),
            eta_s=round(elapsed_s / done * (self.steps - self.step), 1) if done else None,
            reward=self.metrics.get("reward"),
            kl=self.metrics.get("kl"),
            gap=self.metrics.get("gap"),
            staleness=self.metrics.get("staleness"),
        )

    def as_json(self) -> dict[str, float | int | None]:
        """What stands in the job's row, written by heartbeats."""
        told = {"step", "steps", "loss", "tokens", "tokens_per_s", "eta_s"}
        return self.fact().model_dump(mode="json", include=told | (self.metrics.keys() & OWN_FIELDS))
