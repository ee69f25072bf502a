"""Messages read strictly: the subject decides type and tenant, the body must be plain, sound JSON."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmint.bus.messages import RawMessage, cloud_event_headers, decode, encode, tenant_of_subject
from openmint.bus.streams import RETRY_DELAYS_S, consumer_of, retry_delay_s
from openmint.bus.strict_json import parse_object
from openmint.errors import BadEvent, CallerMistake
from openmint.events import CheckpointSaved, JobStarted, TrainRequested

DIGEST = "sha256:" + "a" * 64
SUBJECT = "openmint.train.requested.v1.acme.nightly"
BODY = b'{"policy": "p", "base": "b", "dataset": {"digest": "' + DIGEST.encode() + b'"}}'


def test_bare_body_has_stream_and_sequence_as_its_id() -> None:
    received = decode(None, SUBJECT, BODY, "JOBS", 17)
    assert (received.event_id, received.tenant, received.token) == ("JOBS-17", "acme", "nightly")
    assert isinstance(received.event, TrainRequested)


def test_given_id_is_kept() -> None:
    assert decode({"ce-id": "mine"}, SUBJECT, BODY, "JOBS", 17).event_id == "mine"


def test_type_in_the_header_must_be_the_subjects() -> None:
    with pytest.raises(BadEvent, match="ce-type says"):
        decode({"ce-type": "openmint.train.requested.v2"}, SUBJECT, BODY, "JOBS", 1)


def test_unknown_version_is_no_event_of_ours() -> None:
    with pytest.raises(BadEvent, match="no event is published on"):
        decode(None, "openmint.train.requested.v9.acme.x", BODY, "JOBS", 1)


def test_tenant_is_the_subjects() -> None:
    assert tenant_of_subject(SUBJECT) == "acme"
    assert tenant_of_subject("openmint.load.requested.v1.smollm2.acme.id") == "acme"
    assert tenant_of_subject("openmint.load.failed.v1.acme.smollm2") == "acme"
    for bad in (
        "openmint.train.requested.v1.acme",
        "openmint.train.requested.v1.ACME.x",
        "openmint.train.requested.v1",
    ):
        with pytest.raises(CallerMistake):
            tenant_of_subject(bad)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"null", "JSON null"),
        (b"3", "JSON number"),
        (b'"a"', "JSON string"),
        (b"[]", "JSON array"),
        (b"{", "not JSON"),
        (b'{"a": Infinity}', "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
        (b'{"a": ' + b"[" * 100_000, "nested more than 64"),
        (b'{"a": 1}{"a": 2}', "not JSON"),
    ],
)
def test_unsound_json_is_refused(data: bytes, detail: str) -> None:
    with pytest.raises(BadEvent, match=detail):
        parse_object(data)


def test_brackets_inside_strings_are_no_nesting() -> None:
    assert parse_object(b'{"a": "' + b"[{" * 200 + b'\\"["}')["a"].endswith('"[')


def test_number_beyond_a_double_is_refused() -> None:
    with pytest.raises(BadEvent):
        decode(None, SUBJECT, BODY[:-1] + b', "adapter": {"alpha": 1e999}}', "JOBS", 1)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        decode(None, SUBJECT, data, "JOBS", 1)
    except CallerMistake as mistake:
        assert mistake.detail


@given(st.text(max_size=80))
def test_whatever_the_subject_it_is_read_or_refused(subject: str) -> None:
    try:
        decode(None, subject, BODY, "JOBS", 1)
    except CallerMistake as mistake:
        assert mistake.detail


def test_fact_comes_back_as_it_went_out() -> None:
    fact = JobStarted(tenant="acme", job_id=uuid4(), policy="p", base="b", fence=2, causation_id="JOBS-1")
    headers = cloud_event_headers(fact, "trainer")
    assert headers["Nats-Msg-Id"] == headers["ce-id"] == str(fact.event_id)
    assert headers["ce-causationid"] == "JOBS-1"
    received = decode(headers, fact.subject(), encode(fact), "EVENTS", 1)
    assert received.event == fact


def test_message_without_a_tenant_says_so() -> None:
    with pytest.raises(BadEvent, match="tokens"):
        _ = RawMessage("openmint.train", b"").tenant


def test_rests_grow_and_stay_at_the_longest() -> None:
    assert [retry_delay_s(n) for n in range(1, 20)] == [*RETRY_DELAYS_S, *[RETRY_DELAYS_S[-1]] * 12]


def test_consumer_that_the_table_lacks_is_a_mistake_of_ours() -> None:
    assert consumer_of("exporter", CheckpointSaved).name == "exporter-checkpoint-saved"
    with pytest.raises(LookupError, match="no consumer of CheckpointSaved for gateway"):
        consumer_of("gateway", CheckpointSaved)
