"""Names, selectors and ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmint.errors import BadName
from openmint.identifiers import (
    BaseModelName,
    ByAlias,
    ByDigest,
    ByNumber,
    ByStep,
    PolicyModel,
    PolicyName,
    check_alias,
    check_name,
    digest_bytes,
    digest_from_bytes,
    new_id,
    parse_model,
)

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("smollm2-135m", BaseModelName("smollm2-135m")),
        ("acme/tone", PolicyModel(PolicyName("acme", "tone"), ByAlias("production"))),
        ("acme/tone@canary", PolicyModel(PolicyName("acme", "tone"), ByAlias("canary"))),
        ("acme/tone@7", PolicyModel(PolicyName("acme", "tone"), ByNumber(7))),
        ("acme/tone@step-400", PolicyModel(PolicyName("acme", "tone"), ByStep(400))),
        (f"acme/tone@{DIGEST}", PolicyModel(PolicyName("acme", "tone"), ByDigest(DIGEST))),
    ],
)
def test_model_name_is_read_as_its_caller_meant_it(text: str, meaning: object) -> None:
    assert parse_model(text) == meaning


@pytest.mark.parametrize(
    "text",
    ["", "Acme/tone", "acme/", "/tone", "acme/tone@", "acme/tone@sha256:zz", "acme/tone@a.b", "acme/to/ne", "a b",
     "acme/tone@*", "acme/tone@>", "acme/tone\n", "../x", "a" * 64],
)  # fmt: skip
def test_malformed_model_name_is_refused_and_named(text: str) -> None:
    with pytest.raises(BadName):
        parse_model(text)


@pytest.mark.parametrize("alias", ["7", "step-3", DIGEST])
def test_alias_that_reads_as_another_selector_is_refused(alias: str) -> None:
    with pytest.raises(BadName):
        check_alias(alias)


@given(st.text(max_size=70))
def test_whatever_passes_as_a_name_can_stand_in_a_subject(text: str) -> None:
    try:
        name = check_name(text)
    except BadName:
        return
    assert name and not set(name) & set(".*> \t\r\n")


@given(st.binary(min_size=32, max_size=32))
def test_digest_survives_the_catalogue(raw: bytes) -> None:
    assert digest_bytes(digest_from_bytes(raw)) == raw


def test_ids_are_version_7_and_ordered_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert {i.version for i in ids} == {7}
    assert len(set(ids)) == 1000
    assert [i.int >> 80 for i in ids] == sorted(i.int >> 80 for i in ids)
