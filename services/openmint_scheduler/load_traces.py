"""The part of a request's trace that the scheduler makes: `scheduler.load` with its queue, stage and attach.

It stands beside the core, which knows nothing of traces, and follows a load by what the core says of it. A load belongs
to the trace of the request that began it; later waiters name it as joined. While tracing is off nothing is kept here.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace

from openmint import tracing
from openmint.engines.protocol import AttachRequest
from openmint.tracing import Span
from openmint_scheduler.messages import LoadKey, Noted, Wanted

MAX_TRACED = 4000
"""Loads followed at once; beyond it further ones are not. The queue's own bound is below it."""


@dataclass(slots=True)
class _Traced:
    key: LoadKey
    load: Span
    queue: Span


class LoadTraces:
    """The traced loads of one base."""

    def __init__(self) -> None:
        self._by_digest: dict[str, _Traced] = {}

    def begin(self, wanted: Wanted, load_class: str, traceparent: str | None) -> None:
        """A load was begun by a traced request."""
        digest = wanted.key.digest
        if not traceparent or not tracing.is_on() or digest in self._by_digest or len(self._by_digest) >= MAX_TRACED:
            return
        load = tracing.begin(
            "scheduler.load", parent=traceparent, policy=wanted.label, revision=digest, pool=wanted.key.pool,
            load_class=load_class,
        )  # fmt: skip
        self._by_digest[digest] = _Traced(wanted.key, load, _queue_of(load))

    @contextmanager
    def staging(self, engine: str, digest: str) -> Generator[None]:
        """A stage command under way: what is asked of the engine inside is part of the load's trace."""
        traced = self._by_digest.get(digest)
        if traced is None:
            yield
            return
        traced.queue.end()
        with tracing.begin("scheduler.stage", parent=traced.load.traceparent, engine=engine):
            yield

    @contextmanager
    def attaching(self, engine: str, requests: Iterable[AttachRequest]) -> Generator[list[AttachRequest]]:
        """An attach command under way: the requests as the engine gets them, each with its own load's trace."""
        told = list(requests)
        spans: list[Span] = []
        for place, request in enumerate(told):
            traced = self._by_digest.get(request.digest)
            if traced is not None:
                traced.queue.end()
                span = tracing.begin("scheduler.attach", parent=traced.load.traceparent, engine=engine, batch=len(told))
                spans.append(span)
                told[place] = replace(request, traceparent=span.traceparent)
        try:
            yield told
        except BaseException as error:
            for span in spans:
                span.end(str(getattr(error, "code", type(error).__name__)))
            raise
        finally:
            for span in spans:
                span.end()

    def noted(self, note: Noted) -> None:
        """The core said something; some of it is the end of a load, or its way back to the queue."""
        traced = self._by_digest.get(str(note.fields.get("revision", ""))) if self._by_digest else None
        if traced is None:
            return
        if note.happening == "adapter.attached":
            traced.load.note(engine=str(note.fields["engine"]))
            self.end(traced.key, "")
        elif note.happening == "load.returned":
            traced.load.note(tries=int(note.fields["tries"]), trouble=str(note.fields["trouble"]))
            traced.queue.end()
            traced.queue = _queue_of(traced.load)
        elif note.happening == "load.cancelled":
            self.end(traced.key, "cancelled")

    def end(self, key: LoadKey, error: str) -> None:
        """The load is over; `error` is a code, empty when the revision answers."""
        traced = self._by_digest.get(key.digest)
        if traced is not None and traced.key == key:
            del self._by_digest[key.digest]
            traced.queue.end()
            traced.load.end(error)

    def sweep(self, under_way: Iterable[LoadKey]) -> None:
        """End what the core has ended without a word."""
        if self._by_digest:
            left = set(under_way)
            for traced in [traced for traced in self._by_digest.values() if traced.key not in left]:
                self.end(traced.key, "")

    def close(self) -> None:
        """This process leads no more; whoever does begins anew."""
        for traced in list(self._by_digest.values()):
            self.end(traced.key, "leader_ended")


def _queue_of(load: Span) -> Span:
    return tracing.begin("scheduler.queue", parent=load.traceparent)
