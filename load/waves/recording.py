"""Outcomes of a scenario as recorded events, for the page that is drawn of a run."""

import time
from collections.abc import Iterable
from pathlib import Path

from load.clients.records import Outcome
from load.plots.events import EventWriter, RequestEvent, RunEvent


class Recorder:
    """Writes events into `folder`/events.jsonl; without a folder, nowhere."""

    def __init__(self, folder: Path | None, scenario: str, title: str) -> None:
        self._zero_s = time.monotonic()
        self._writer: EventWriter | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventWriter(folder / "events.jsonl")
            self._writer.write(RunEvent(scenario=scenario, title=title))

    def requests(self, outcomes: Iterable[Outcome], variant: str, wave: int, *, is_cold: bool) -> None:
        """Note what became of calls."""
        if self._writer is not None:
            self._writer.write(*(self._event(outcome, variant, wave, is_cold) for outcome in outcomes))

    def close(self) -> None:
        """No more."""
        if self._writer is not None:
            self._writer.close()

    def _event(self, outcome: Outcome, variant: str, wave: int, is_cold: bool) -> RequestEvent:
        return RequestEvent(
            t=outcome.scheduled_s - self._zero_s,
            ttft_s=outcome.ttft_s,
            total_s=outcome.total_s,
            is_cold=is_cold,
            wave=wave,
            policy=outcome.call.policy.model,
            tenant=outcome.call.policy.tenant,
            engine=outcome.engine,
            outcome="answered" if outcome.is_answered else "refused" if outcome.is_refused else "failed",
            variant=variant,
        )
