"""Watches what the engine answers: an answer that is not made of numbers makes the engine suspect.

A NaN in one adapter's weights stays behind in the key-value cache and spoils neighbours and the base, while `/health`
says 200. So from the first such answer on nothing more is admitted, and it is told who may be the cause: whoever gave
that answer, and who was in flight with it and has not answered well in this boot (bad weights hardly ever do).
"""

from collections import Counter
from dataclasses import dataclass

from openmint.engines.protocol import VERDICT_HEADER
from openmint_engine_host.plugin import asgi
from openmint_engine_host.plugin.admission import Admission

NOT_A_NUMBER = b"Out of range float values"
"""In vLLM's 400 when logprobs that are NaN or infinite were to be written as JSON."""

MAX_LOOKED_AT = 4096
"""Bytes of an answer in which an empty text is looked for; an answer with text is longer or has it early."""

EMPTY_TEXTS = (b'"text":""', b'"content":""')
CUT_OFF = b'"finish_reason":"length"'

SUSPECT_HEADERS = ((VERDICT_HEADER, "suspect"), ("retry-after", "1"))


class AnswerBroken(Exception):
    """The rest of an answer that had begun is withheld."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Why the engine is suspect. `digests` may be the cause; `in_flight` were being answered when it showed."""

    reason: str
    digests: tuple[str, ...]
    in_flight: tuple[str, ...]


class AnswerWatch:
    """Of one boot. The base's name is the empty string here."""

    def __init__(self, admission: Admission) -> None:
        self.suspicion: Suspicion | None = None
        self.is_examining = False
        """While suspects are probed on purpose, what they answer is no news."""
        self._admission = admission
        self._proven: set[str] = set()
        self._bad: Counter[str] = Counter()

    def note(self, name: str, *, is_finite: bool) -> None:
        """The model of that name has made a token (or, not finite, has tried to)."""
        if self.is_examining:
            return
        if not is_finite:
            self._bad[name] += 1
            if self.suspicion is None:
                self._suspect(name)
        elif self.suspicion is None and name not in self._proven:
            self._proven.add(name)
            if len(self._proven) > 4 * self._admission.limit + 1024:
                self._proven &= {adapter.name for adapter in self._admission.adapters()}

    def bad_answers(self, name: str) -> int:
        """How often the model has made no number, in this boot."""
        return self._bad[name]

    def _suspect(self, name: str) -> None:
        adapters = list(self._admission.adapters())
        in_flight = [adapter for adapter in adapters if adapter.in_flight]
        causes = [adapter for adapter in adapters if adapter.name == name]
        causes += [a for a in in_flight if a.name != name and a.name not in self._proven]
        found = self._admission.find(name)
        who = found.name if found is not None else "the base"
        self.suspicion = Suspicion(
            f"{who} gave an answer that is not finite",
            tuple(dict.fromkeys(adapter.digest for adapter in causes)),
            tuple(dict.fromkeys(adapter.digest for adapter in in_flight)),
        )
        self._admission.closed_because = f"the engine is suspect: {self.suspicion.reason}"


class WatchedAnswer:
    """A `send` that lets no bad answer through: it becomes a 503, or breaks off when bytes have gone already."""

    def __init__(self, send: asgi.Send, watch: AnswerWatch, name: str) -> None:
        self.is_doubtful = False
        """The whole answer is an empty text that no end-of-sequence explains: worth a probe."""
        self.was_bad = False
        self._send = send
        self._watch = watch
        self._name = name
        self._bad_before = watch.bad_answers(name)
        self._status = 0
        self._is_whole = True

    async def __call__(self, message: asgi.Message) -> None:
        """Pass one ASGI message on. Raises: AnswerBroken."""
        if self.was_bad:
            return
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            if self._is_bad():
                await self._refuse()
                return
        elif message["type"] == "http.response.body":
            if self._is_bad():
                raise AnswerBroken
            self._look_at(message.get("body", b""), is_last=not message.get("more_body", False))
        await self._send(message)

    def _is_bad(self) -> bool:
        return self._watch.bad_answers(self._name) > self._bad_before

    async def _refuse(self) -> None:
        self.was_bad = True
        await asgi.refuse(
            self._send, 503, "suspect", "the answer was not made of numbers; nothing of it is given", SUSPECT_HEADERS
        )

    def _look_at(self, body: bytes, *, is_last: bool) -> None:
        if self._status == 400 and NOT_A_NUMBER in body:
            self._watch.note(self._name, is_finite=False)
        elif self._status == 200 and is_last and self._is_whole and len(body) <= MAX_LOOKED_AT:
            self.is_doubtful = CUT_OFF in body and any(text in body for text in EMPTY_TEXTS)
        self._is_whole = False
