"""The rewards that need nothing from outside. Each takes one completion and gives 0 or 1."""

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

import regex

from openmint.errors import BadRequest
from openmint.events import SimpleReward
from openmint_trainer.rewards.contract import Attempt, Reward, RewardFailed

PATTERN_TIMEOUT_S = 1.0
"""Of one match. Patterns come from tenants, and some take exponential time on some texts."""

_NUMBER = regex.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?")

Judge = Callable[[Attempt], float]


class BuiltIn:
    """A `Reward` that judges each attempt by itself."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """Raises: RewardFailed naming kind and prompt."""
        return [self._judge(attempt) for attempt in attempts]


def exact(_: SimpleReward) -> Reward:
    """1 when the completion without surrounding blanks is the answer without them."""
    return BuiltIn(lambda attempt: float(attempt.completion.strip() == attempt.answer.strip()))


def numeric(spec: SimpleReward) -> Reward:
    """1 when the last number of the completion is within `tolerance` of the last number of the answer.

    Thousands may be divided by commas. An answer without a number is worth 0, as is a completion without one.
    """
    tolerance = Decimal(repr(spec.tolerance))

    def judge(attempt: Attempt) -> float:
        given, wanted = _last_number(attempt.completion), _last_number(attempt.answer)
        return float(given is not None and wanted is not None and abs(given - wanted) <= tolerance)

    return BuiltIn(judge)


def format_(spec: SimpleReward) -> Reward:
    """1 when the whole completion matches `pattern`; a dot matches a newline too.

    Raises: BadRequest for a pattern that is none.
    """
    try:
        compiled = regex.compile(spec.pattern or "", regex.DOTALL)
    except (regex.error, OverflowError, RecursionError) as error:
        raise BadRequest(f"reward format: the pattern can't be read: {error}", field="reward.pattern") from error

    def judge(attempt: Attempt) -> float:
        try:
            # The lock is let go while it matches: a slow pattern must hold up nobody else.
            return float(compiled.fullmatch(attempt.completion, timeout=PATTERN_TIMEOUT_S, concurrent=True) is not None)
        except TimeoutError as error:
            raise RewardFailed(
                f"reward format: the pattern took longer than {PATTERN_TIMEOUT_S:g} s on a completion of prompt "
                f"{attempt.prompt_index}",
                field="reward.pattern",
            ) from error

    return Matching(judge)


def length(spec: SimpleReward) -> Reward:
    """1 when the completion has between `min_characters` and `max_characters` characters, both included."""
    most = float("inf") if spec.max_characters is None else spec.max_characters
    return BuiltIn(lambda attempt: float(spec.min_characters <= len(attempt.completion) <= most))


def label(spec: SimpleReward) -> Reward:
    """1 when the longest of `labels` that the completion begins with is the answer; surrounding blanks do not count."""
    labels = sorted((text.strip() for text in spec.labels), key=len, reverse=True)

    def judge(attempt: Attempt) -> float:
        given = next((text for text in labels if attempt.completion.strip().startswith(text)), None)
        return float(given is not None and given == attempt.answer.strip())

    return BuiltIn(judge)


class Matching(BuiltIn):
    """A judge that may take long runs in a thread, so that the loop goes on."""

    async def __call__(self, attempts: Sequence[Attempt]) -> list[float]:
        """Raises: RewardFailed naming kind and prompt."""
        return await asyncio.to_thread(lambda: [self._judge(attempt) for attempt in attempts])


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None
