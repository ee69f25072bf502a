"""Crowds and arrivals have the statistics they say, and a seed repeats them."""

from pathlib import Path

import numpy as np
import pytest

from load.workloads.arrivals import OUTPUT_TOKENS, PROMPT_TOKENS, burst_arrivals, client_arrivals
from load.workloads.crowd import MAX_CV, Crowd, draw_crowd
from load.workloads.trace_files import SETTING, TraceFiles, find_traces

POLICIES = 2048


def crowd_of(seed: int = 0) -> Crowd:
    return draw_crowd(POLICIES, np.random.default_rng(seed))


def cv_of(times: list[float]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def test_a_crowd_is_a_distribution_with_bounded_bursts() -> None:
    crowd = crowd_of()
    assert len(crowd) == POLICIES
    assert crowd.weights.sum() == pytest.approx(1)
    assert crowd.cvs.min() > 0 and crowd.cvs.max() <= MAX_CV


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tenth_of_the_policies_takes_most_requests_but_not_all(seed: int) -> None:
    arrivals = client_arrivals(crowd_of(seed), 2000, 8.0, np.random.default_rng(seed))
    counts = np.sort(np.bincount([a.policy for a in arrivals], minlength=POLICIES))[::-1]
    assert 0.75 <= counts[: POLICIES // 10].sum() / 2000 <= 0.995
    assert len({a.policy for a in arrivals[:1000]}) >= 100


def test_arrivals_come_in_order_at_the_wanted_rate() -> None:
    for draw in (client_arrivals, burst_arrivals):
        arrivals = draw(crowd_of(), 500, 12.5, np.random.default_rng(3))
        times = [a.at_s for a in arrivals]
        assert times == sorted(times)
        assert times[-1] == pytest.approx(500 / 12.5)


def test_sizes_stay_in_their_bounds() -> None:
    arrivals = client_arrivals(crowd_of(), 500, 5.0, np.random.default_rng(4))
    assert {a.prompt_tokens for a in arrivals} <= set(range(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1))
    assert {a.output_tokens for a in arrivals} == set(range(OUTPUT_TOKENS[0], OUTPUT_TOKENS[1] + 1))


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    first, again, other = (client_arrivals(crowd_of(), 200, 5.0, np.random.default_rng(s)) for s in (7, 7, 8))
    assert first == again
    assert first != other


def test_prompts_share_no_prefix() -> None:
    arrivals = client_arrivals(crowd_of(), 50, 5.0, np.random.default_rng(0))
    prompts = [a.prompt(49_152) for a in arrivals]
    assert [len(p) for p in prompts] == [a.prompt_tokens for a in arrivals]
    assert len({tuple(p[:4]) for p in prompts}) == 50
    assert prompts[0] == arrivals[0].prompt(49_152)


def test_a_stream_has_its_rate_and_burstiness_from_the_first_moment() -> None:
    calm = Crowd(np.full(50, 0.02), np.full(50, 1.0), "published parameters")
    arrivals = client_arrivals(calm, 4000, 1.0, np.random.default_rng(0))
    assert cv_of([a.at_s for a in arrivals]) == pytest.approx(1.0, abs=0.1)
    bursty = Crowd(np.full(400, 1 / 400), np.full(400, 6.0), "published parameters")
    early = client_arrivals(bursty, 2000, 1.0, np.random.default_rng(0))
    counts = np.histogram([a.at_s for a in early], bins=4)[0]
    assert counts[0] < 3 * counts[1:].mean()


def test_the_burst_is_far_from_even() -> None:
    assert cv_of([a.at_s for a in burst_arrivals(crowd_of(), 8000, 10.0, np.random.default_rng(0))]) > 5


def test_without_traces_the_published_parameters_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load.workloads.crowd.find_traces", lambda: None)
    crowd = crowd_of()
    assert crowd.source == "published parameters"
    assert 0.6 <= np.sort(crowd.weights)[::-1][: POLICIES // 10].sum() <= 0.95


def test_a_named_folder_without_traces_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path))
    with pytest.raises(SystemExit, match=SETTING):
        find_traces()


def test_the_traces_hold_what_they_are_said_to_hold() -> None:
    traces: TraceFiles | None = find_traces()
    if traces is None:
        pytest.skip(f"no traces here; {SETTING} names their folder")
    clients = traces.clients()
    assert len(clients) > 300
    assert min(c.relative_rate for c in clients) > 0
    gaps = traces.burst_gaps_s()
    assert gaps.std() / gaps.mean() == pytest.approx(13.2, abs=0.5)
