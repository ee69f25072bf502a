from openmint_evaluator.probes import BUILT_IN, MAX_PROBE_LENGTH, PROBE_TOKENS, Probe, choose_probes

TEXTS = [list(range(45)) for _ in BUILT_IN]


def scored(probes: list[Probe]) -> int:
    return sum(probe.scored_tokens for probe in probes)


def test_built_in_texts_alone_give_enough_tokens() -> None:
    probes = choose_probes(TEXTS, [])
    assert PROBE_TOKENS <= scored(probes) < PROBE_TOKENS + MAX_PROBE_LENGTH
    assert {probe.source for probe in probes} == {"built-in"}


def test_held_out_rows_give_about_half_of_the_tokens() -> None:
    held_out = [[i] * 20 for i in range(1000)]
    probes = choose_probes(TEXTS, held_out)
    theirs = scored([probe for probe in probes if probe.source == "held-out"])
    assert PROBE_TOKENS <= scored(probes) < PROBE_TOKENS + MAX_PROBE_LENGTH
    assert 0.35 < theirs / scored(probes) < 0.55


def test_few_held_out_rows_are_filled_up_with_built_in_texts() -> None:
    probes = choose_probes(TEXTS, [[1, 2, 3]])
    assert scored(probes) >= PROBE_TOKENS
    assert len({(probe.source, i) for i, probe in enumerate(probes)}) == len(probes)


def test_long_rows_are_cut_and_one_token_rows_left_out() -> None:
    probes = choose_probes([], [list(range(500)), [7], []], tokens=100)
    assert [len(probe.token_ids) for probe in probes] == [MAX_PROBE_LENGTH]
