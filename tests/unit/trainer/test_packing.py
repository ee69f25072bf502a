"""The packer keeps its budget and starves nobody."""

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmint_trainer.packing import ROW_BUCKET, Packer, padded
from openmint_trainer.rows import Portion, Row, split_batch

MakeRow = Callable[..., Row]


def portion_of(make_row: MakeRow, tokens: int) -> Portion:
    return Portion((make_row(tokens, seed=tokens),))


def test_a_batch_is_cut_by_its_own_rows_alone(make_row: MakeRow) -> None:
    rows = [make_row(length, seed=length) for length in (10, 20, 5, 40, 3)]
    portions = split_batch(rows, 30)
    assert [[len(row) for row in portion.rows] for portion in portions] == [[10, 20], [5], [40], [3]]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5)),
        st.lists(st.integers(1, 128), min_size=1, max_size=6),
        min_size=1,
        max_size=8,
    )
)
def test_no_micro_batch_exceeds_the_budget_and_everything_is_served_in_order(
    sizes: dict[tuple[str, int], list[int]],
) -> None:
    import torch

    def row(length: int) -> Row:
        return Row(torch.zeros(length, dtype=torch.int64), torch.zeros(length, dtype=torch.int64), torch.ones(length))

    packer = Packer(128)
    waiting = {key: deque(Portion((row(n),)) for n in lengths) for key, lengths in sizes.items()}
    for key in waiting:
        packer.enter(key, key[0])
    served: dict[tuple[str, int], list[int]] = {key: [] for key in sizes}
    for _ in range(sum(map(len, sizes.values()))):
        chosen = packer.pack(waiting)
        if not chosen:
            break
        assert padded(sum(portion.tokens for _, portion in chosen)) <= 128
        for key, portion in chosen:
            served[key].append(portion.tokens)
    assert served == sizes


def test_a_large_portion_is_not_overtaken_forever_by_small_ones(make_row: MakeRow) -> None:
    packer = Packer(128)
    packer.enter("large", "a")
    packer.enter("small", "b")
    large, small = portion_of(make_row, 120), portion_of(make_row, 20)
    waiting = {"large": deque([large]), "small": deque([small] * 100)}
    rounds = 0
    while waiting["large"]:
        packer.pack(waiting)
        rounds += 1
    assert rounds <= 2


def test_tenants_share_equally_whatever_the_number_of_their_jobs(make_row: MakeRow) -> None:
    packer = Packer(128)
    jobs = {**{f"a{i}": "a" for i in range(5)}, "b0": "b"}
    for key, tenant in jobs.items():
        packer.enter(key, tenant)
    portion = portion_of(make_row, 32)
    waiting = {key: deque([portion] * 200) for key in jobs}
    tokens = {"a": 0, "b": 0}
    for _ in range(40):
        for key, chosen in packer.pack(waiting):
            tokens[jobs[key]] += chosen.tokens
    assert abs(tokens["a"] - tokens["b"]) <= 32


def test_a_newcomer_earns_no_credit_for_time_it_was_away(make_row: MakeRow) -> None:
    packer = Packer(128)
    packer.enter("old", "a")
    portion = portion_of(make_row, 32)
    waiting = {"old": deque([portion] * 100)}
    for _ in range(10):
        packer.pack(waiting)
    packer.enter("new", "b")
    waiting["new"] = deque([portion] * 100)
    chosen = [key for _ in range(4) for key, _ in packer.pack(waiting)]
    assert chosen.count("old") == chosen.count("new")


def test_micro_batches_are_padded_to_whole_buckets() -> None:
    assert [padded(n) for n in (1, ROW_BUCKET, ROW_BUCKET + 1)] == [ROW_BUCKET, ROW_BUCKET, 2 * ROW_BUCKET]
    with pytest.raises(ValueError, match="below one bucket"):
        Packer(ROW_BUCKET - 1)
