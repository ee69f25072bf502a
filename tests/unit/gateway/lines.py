"""Lines in front of engines, for tests that drive them with plain values."""

from openmint_gateway.forecast import Bounds
from openmint_gateway.line import Line, LineRules
from openmint_gateway.seats import Request

NO_VERDICT = Bounds(is_verdict_early=False)
ONE_BY_ONE = LineRules(margin=0, bounds=NO_VERDICT)


def request(adapter: str = "a", tenant: str = "acme", at_s: float = 0.0, wait_s: float = 100.0, **more) -> Request:
    values = {"asked_tokens": 10, "sequences": 1, **more}
    return Request(tenant=tenant, adapter=adapter, arrived_s=at_s, deadline_s=at_s + wait_s, **values)


def queue(line: Line, *requests: Request, running: int = 1) -> list[Request]:
    for waiting in requests:
        assert not line.arrive(waiting, {"e": running}, waiting.arrived_s)
    return list(requests)


class OneByOne(Line):
    """A line whose engine `e` runs one request at a time, and one now."""

    def __init__(self, rules: LineRules = ONE_BY_ONE, **weights: float) -> None:
        super().__init__(rules, weights)
        self.running = request("first", "before")
        assert self.arrive(self.running, {"e": 1}, 0.0)

    def step(self, now_s: float = 0.0) -> Request | None:
        """The running one ends; the one that follows it."""
        self.leave(self.running, now_s)
        following = self.next_for("e", now_s)
        self.running = following or self.running
        return following


def drain(line: OneByOne) -> list[Request]:
    """Let everything run; the order in which it did."""
    return list(iter(line.step, None))
