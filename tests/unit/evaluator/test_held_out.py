import hashlib

import pytest

from openmint.errors import BadDataset
from openmint_evaluator.held_out import parse_rows, spread_rows


def named(content: bytes) -> tuple[bytes, str]:
    return content, f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_rows_are_read_line_by_line_and_blank_lines_skipped() -> None:
    assert parse_rows(*named(b'{"prompt":"a","completion":"b"}\n\n{"prompt":"c","completion":"d"}\n')) == [
        {"prompt": "a", "completion": "b"},
        {"prompt": "c", "completion": "d"},
    ]


@pytest.mark.parametrize("content", [b"", b"\n", b"[1]\n", b"{nope\n"])
def test_what_is_no_rows_is_refused(content: bytes) -> None:
    with pytest.raises(BadDataset):
        parse_rows(*named(content))


def test_other_bytes_than_the_digest_names_are_refused() -> None:
    with pytest.raises(BadDataset, match="does not have the digest"):
        parse_rows(b'{"prompt":"a","completion":"b"}\n', "sha256:" + "0" * 64)


def test_many_rows_are_thinned_evenly_and_the_same_every_time() -> None:
    rows = [{"prompt": str(n)} for n in range(5000)]
    chosen = spread_rows(rows, limit=2000)  # type: ignore[arg-type]
    assert len(chosen) == 2000
    assert chosen[0] == rows[0] and int(str(chosen[-1]["prompt"])) > 4990
    assert chosen == spread_rows(rows, limit=2000)  # type: ignore[arg-type]
    assert spread_rows(rows[:10]) == rows[:10]  # type: ignore[arg-type]
