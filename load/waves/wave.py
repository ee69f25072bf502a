"""One wave: distinct policies, all asked in one moment for one token; cold, and then the same ones warm."""

from collections.abc import Sequence
from dataclasses import dataclass

from load.clients.drivers import at_once
from load.clients.figures import percentile, ttfts
from load.clients.records import Call, Outcome, Target
from load.stack.policies import Policy

PROMPT = "Round {round}, question {number}: the capital of France is"
"""About 16 tokens; the numbers differ, so that no prefix is found in a cache. A digit is a token: raced rounds must
have as many."""


@dataclass(frozen=True, slots=True)
class Wave:
    """A cold wave and the warm one after it, of one side."""

    cold: tuple[Outcome, ...]
    warm: tuple[Outcome, ...]

    @property
    def faults(self) -> int:
        """Calls of both waves that were not answered whole and right."""
        return sum(not outcome.is_answered for outcome in (*self.cold, *self.warm))

    @property
    def cold_p95_s(self) -> float:
        """To the first token."""
        return percentile(ttfts(self.cold), 0.95)

    @property
    def warm_p95_s(self) -> float:
        """To the first token."""
        return percentile(ttfts(self.warm), 0.95)

    @property
    def load_ms(self) -> float:
        """What one more cold load adds: the makespan of the cold wave beyond the warm one's, for each load."""
        return (max(ttfts(self.cold), default=0.0) - max(ttfts(self.warm), default=0.0)) / len(self.cold) * 1000


async def cold_then_warm(target: Target, policies: Sequence[Policy], round_number: int) -> Wave:
    """Ask policies that are cold, all at once; when all have answered, ask them again with other prompts."""
    cold = await at_once(target, _calls(policies, f"{round_number}a"))
    warm = await at_once(target, _calls(policies, f"{round_number}b"))
    return Wave(tuple(cold), tuple(warm))


def _calls(policies: Sequence[Policy], name: str) -> list[Call]:
    return [
        Call(policy, PROMPT.format(round=name, number=number), 1, tag=name) for number, policy in enumerate(policies)
    ]
