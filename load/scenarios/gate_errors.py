"""How often the gate's paired test errs at 512 tokens, and how few tokens would tell two revisions apart at all.

Synthetic logprobs with the noise that a bf16 engine showed against an fp32 reference: mean 0.05 nats, p99 near 0.4, one
token in some hundreds above 1.
"""

import random
import time

from load.report import ReportBuilder
from load.scenarios.contract import Options, Scenario

EFFECTS = (0.05, 0.1, 0.2, 0.8)
"""Mean nats between two revisions: mild, one training step, ordinary, strong."""

TOKENS = 512
MAX_TOKENS = 4096
TARGET_ERROR = 0.01
"""At which tokens are counted: errors of one in a million can't be counted in seconds."""


def run(options: Options, report: ReportBuilder) -> None:
    """Errors at 512 tokens for each effect, then the tokens that the mild one needs."""
    from openmint_evaluator.attribution import HALF_PRECISION_SCALE, paired_test

    rounds = 25 if options.is_quick else 2000
    generator = random.Random(options.seed)
    durations_ms: list[float] = []
    accepted_wrong = refused_right = 0
    for effect in EFFECTS:
        for _ in range(rounds):
            other, right = _revisions(generator, effect, TOKENS)
            for answering, is_right in ((right, True), (other, False)):
                engine = [value + _noise(generator) for value in answering]
                started = time.perf_counter()
                decision = paired_test("other", engine, right, other, HALF_PRECISION_SCALE).decision
                durations_ms.append((time.perf_counter() - started) * 1000)
                accepted_wrong += not is_right and decision == "right"
                refused_right += is_right and decision != "right"
    total = rounds * len(EFFECTS)
    report.measure("paired test of 512 tokens", "ms", durations_ms)
    report.check_at_most("wrong revisions accepted", float(accepted_wrong), 0, f"of {total}")
    report.check_at_most("right revisions not recognised", float(refused_right), 0, f"of {total}")

    needed = _tokens_needed(random.Random(options.seed), 200 if options.is_quick else 1000)
    report.measure("tokens for 1 % errors, effect 0.05", "tokens", [float(needed)])
    report.check_at_most("tokens for 1 % errors, effect 0.05", float(needed), TOKENS / 8)
    report.note("synthetic noise and effects; the real ones are in the integration tests")


def _noise(generator: random.Random) -> float:
    return generator.gauss(0, generator.choices((0.05, 0.2, 0.7), (0.93, 0.06, 0.01))[0])


def _revisions(generator: random.Random, effect: float, tokens: int) -> tuple[list[float], list[float]]:
    other = [-generator.expovariate(0.4) for _ in range(tokens)]
    change = [generator.expovariate(1 / effect) * generator.choice((-1, 1)) for _ in range(tokens)]
    return other, [o + c for o, c in zip(other, change, strict=True)]


def _tokens_needed(generator: random.Random, trials: int) -> int:
    """The smallest of a geometric row of token counts at which errors are below TARGET_ERROR."""
    from openmint_evaluator.attribution import HALF_PRECISION_SCALE, closest

    tokens = 4
    while tokens < MAX_TOKENS:
        errors = 0
        for _ in range(trials):
            other, right = _revisions(generator, EFFECTS[0], tokens)
            engine = [value + _noise(generator) for value in right]
            errors += closest(engine, {"right": right, "other": other}, HALF_PRECISION_SCALE) == "other"
        if errors / trials <= TARGET_ERROR:
            return tokens
        tokens = max(tokens + 1, int(tokens * 1.25))
    return tokens


GATE_ERRORS = Scenario("gate-errors", "errors and tokens of the gate's paired test, on synthetic logprobs", run)
