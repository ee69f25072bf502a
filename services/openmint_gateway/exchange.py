"""One inference request as it goes: what its log line, its headers and its trace will say."""

from dataclasses import dataclass, field

from openmint.tracing import Span, is_on
from openmint_gateway.dispatcher import Journey
from openmint_gateway.key_ring import Caller
from openmint_gateway.problems import Headers


@dataclass(slots=True)
class Exchange:
    """One request and what is known of it so far: the material of its log line."""

    route: str
    request_id: str
    started_s: float
    caller: Caller | None = None
    model: str = ""
    policy: str = ""
    fingerprint: str = ""
    revision: str = ""
    is_stale: bool = False
    is_stream: bool = False
    wait_s: float | None = None
    status: int = 0
    outcome: str = "answered"
    error_code: str = ""
    first_token_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    has_started: bool = False
    journey: Journey = field(default_factory=Journey)

    def headers(self) -> Headers:
        """The headers of every answer, as far as they are known."""
        headers: Headers = [(b"x-openmint-request-id", self.request_id.encode())]
        if self.revision:
            headers.append((b"x-openmint-revision", self.revision.encode()))
        if self.is_stale:
            headers.append((b"x-openmint-stale", b"true"))
        return headers

    def tell(self, span: Span) -> None:
        """End its trace with what is known of it."""
        if is_on():
            span.note(
                route=self.route,
                policy=self.policy,
                revision=self.revision,
                engine=self.journey.engine,
                was_cold=self.journey.was_cold,
                sent_back=self.journey.sent_back,
                outcome=self.outcome,
            )
            span.end(self.error_code)
