"""What stands in the line of a base and pool: requests, and the engines' room for them. Plain values."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from openmint_gateway.pace import Pace

BUSY_PAUSE_S = 0.1
"""An engine that has just said `busy` is asked again after this, twice as long each time …"""

MAX_BUSY_PAUSE_S = 0.4
"""… and at least this often: another gateway's request may have ended there."""

SMALLEST_COST = 1e-3
"""Below the cost of any request: what is left of a sum of many costs is nothing."""

State = Literal["new", "loading", "waiting", "running", "gone"]


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way. Its first token is due at `deadline_s`; it takes `sequences` of an engine."""

    tenant: str
    adapter: str
    sequences: int
    arrived_s: float
    deadline_s: float
    prompt_cost: float = 0.0
    asked_tokens: int | None = None
    """The most that a sequence may generate, if the caller said so."""
    cost: float = 0.0
    """The work it is expected to be, in generated tokens; known from its arrival on."""
    state: State = "new"
    number: int = 0
    engine: str = ""
    sent_s: float = 0.0
    room_taken: int = 0
    charged: float = 0.0
    avoided: set[str] = field(default_factory=set[str])
    spread: tuple[str, ...] = ()
    """The engines whose backlog it is part of."""

    @property
    def may_wait_s(self) -> float:
        """How long it may wait in all."""
        return self.deadline_s - self.arrived_s


@dataclass(slots=True)
class _Pause:
    """An engine said `busy` with so many sequences of ours there: not more than that, for a while."""

    at: int
    until_s: float
    length_s: float


@dataclass(slots=True)
class EngineSeat:
    """One engine: its limit of sequences, what this process has there, and what waits for it."""

    limit: int
    is_alive: bool = True
    sequences: int = 0
    cost: float = 0.0
    backlog: float = 0.0
    """Work that waits for this engine; what could go to several counts at each by its part."""
    adapters: Counter[str] = field(default_factory=Counter[str])
    """Sequences with the engine, by adapter."""
    tenants: Counter[str] = field(default_factory=Counter[str])
    closing: set[str] = field(default_factory=set[str])
    """Adapters that get nothing more here until they have drained: others wait for their slots."""
    tenures: dict[str, int] = field(default_factory=dict[str, int])
    """Sequences sent for an adapter since it last had none here."""
    pauses: dict[str, _Pause] = field(default_factory=dict[str, _Pause])
    pace: Pace = field(default_factory=Pace)

    def has_room(self, sequences: int) -> bool:
        """True when so many fit; a request larger than the whole engine needs an idle one."""
        return self.sequences + min(sequences, self.limit) <= self.limit

    def put(self, request: Request, now_s: float) -> None:
        """A request goes to the engine."""
        taken = request.room_taken = min(request.sequences, self.limit)
        self.sequences += taken
        self.cost += request.cost
        self.tenants[request.tenant] += taken
        if request.adapter:
            self.adapters[request.adapter] += taken
            self.tenures[request.adapter] = self.tenures.get(request.adapter, 0) + taken
        self.pace.sent(self.sequences)
        self.note(now_s)

    def take(self, request: Request, now_s: float) -> None:
        """It is not there any more."""
        taken, request.room_taken = request.room_taken, 0
        self.sequences -= taken
        self.cost -= request.cost
        _lower(self.tenants, request.tenant, taken)
        if request.adapter and _lower(self.adapters, request.adapter, taken):
            self.tenures.pop(request.adapter, None)
            self.closing.discard(request.adapter)
        self.note(now_s)

    def only_fed(self, heads: list[Request]) -> list[Request]:
        """Those whose adapter runs here and may go on, and those of the base model."""
        return [
            head
            for head in heads
            if not head.adapter or (head.adapter in self.adapters and head.adapter not in self.closing)
        ]

    def wait_more(self, cost: float, now_s: float) -> None:
        """So much more work waits for it."""
        self.backlog += cost
        self.note(now_s)

    def wait_less(self, cost: float, now_s: float) -> None:
        """So much less."""
        self.backlog -= cost
        if self.backlog < SMALLEST_COST:
            self.backlog = 0.0
        self.note(now_s)

    def note(self, now_s: float) -> None:
        """Tell the pace whether the engine has as much to do as it takes."""
        self.pace.mark(now_s, is_busy=self.sequences > 0 and (self.backlog > 0 or self.sequences >= self.limit))

    def pause(self, tenant: str, now_s: float) -> None:
        """It said `busy` to a request of this tenant, which is not counted here any more.

        With others of the tenant there it may be the tenant's share that is used up; else it is the whole engine.
        """
        own = self.tenants[tenant]
        name, at = (tenant, own) if own else ("", self.sequences)
        former = self.pauses.get(name)
        length_s = BUSY_PAUSE_S
        if former is not None and former.at == at:
            length_s = min(MAX_BUSY_PAUSE_S, former.length_s * 2)
        self.pauses[name] = _Pause(at, now_s + length_s, length_s)

    def is_paused(self, tenant: str, now_s: float) -> bool:
        """True while the engine would only say `busy` again."""
        if not self.pauses:
            return False
        whole, own = self.pauses.get(""), self.pauses.get(tenant)
        return (whole is not None and whole.until_s > now_s and self.sequences >= whole.at) or (
            own is not None and own.until_s > now_s and self.tenants[tenant] >= own.at
        )

    def accepted(self, request: Request) -> None:
        """The engine has taken a request: pauses at fewer sequences than it runs now are history."""
        for name, running in (("", self.sequences), (request.tenant, self.tenants[request.tenant])):
            pause = self.pauses.get(name)
            if pause is not None and running > pause.at:
                del self.pauses[name]


def _lower(counts: Counter[str], key: str, by: int) -> bool:
    """Count down; True when nothing is left."""
    counts[key] -= by
    if counts[key] > 0:
        return False
    del counts[key]
    return True
