"""The watch over an engine's answers, without an engine."""

import asyncio
import json

import pytest

from openmint_engine_host.plugin.admission import Admission, ResidentAdapter, Ticket
from openmint_engine_host.plugin.answers import AnswerBroken, AnswerWatch, WatchedAnswer


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def name(number: int) -> str:
    return f"acme/p{number}@x#{number}"


@pytest.fixture
def admission() -> Admission:
    opened = Admission("tiny", 8, 2, 1.0)
    opened.closed_because = ""
    for number in range(1, 5):
        opened.add(ResidentAdapter(name(number), digest(number), number, "", 1))
    return opened


def in_flight(admission: Admission, *numbers: int) -> list[Ticket]:
    tickets = [admission.admit(name(number), "acme") for number in numbers]
    return [ticket for ticket in tickets if isinstance(ticket, Ticket)]


def test_the_adapter_without_numbers_is_suspected_and_one_that_answered_before_is_not(admission: Admission):
    watch = AnswerWatch(admission)
    watch.note(name(1), is_finite=True)
    in_flight(admission, 1, 2, 3)
    watch.note(name(2), is_finite=False)
    assert watch.suspicion is not None
    assert watch.suspicion.digests == (digest(2), digest(3))
    assert watch.suspicion.in_flight == (digest(1), digest(2), digest(3))
    assert name(2) in watch.suspicion.reason


def test_nothing_is_admitted_to_a_suspect_engine(admission: Admission):
    watch = AnswerWatch(admission)
    watch.note("", is_finite=False)
    refusal = admission.admit("tiny", "acme")
    assert not isinstance(refusal, Ticket)
    assert "suspect" in refusal.reason


def test_what_goes_wrong_after_the_first_sign_accuses_nobody_else(admission: Admission):
    watch = AnswerWatch(admission)
    in_flight(admission, 2)
    watch.note(name(2), is_finite=False)
    watch.note(name(4), is_finite=False)
    assert watch.suspicion is not None
    assert watch.suspicion.digests == (digest(2),)


def test_who_breaks_first_is_suspected_even_if_it_answered_before(admission: Admission):
    watch = AnswerWatch(admission)
    watch.note(name(1), is_finite=True)
    in_flight(admission, 1)
    watch.note(name(1), is_finite=False)
    assert watch.suspicion is not None
    assert watch.suspicion.digests == (digest(1),)


def test_a_base_that_breaks_accuses_those_in_flight_that_are_not_proven(admission: Admission):
    watch = AnswerWatch(admission)
    watch.note(name(1), is_finite=True)
    in_flight(admission, 1, 3)
    watch.note("", is_finite=False)
    assert watch.suspicion is not None
    assert watch.suspicion.digests == (digest(3),)


def test_an_examination_makes_nobody_suspect(admission: Admission):
    watch = AnswerWatch(admission)
    watch.is_examining = True
    watch.note(name(1), is_finite=False)
    assert watch.suspicion is None
    assert watch.bad_answers(name(1)) == 0


class Answer:
    """What came out of a watched answer."""

    def __init__(self, watch: AnswerWatch, model: str = "") -> None:
        self.sent: list[dict] = []
        self.watched = WatchedAnswer(self._take, watch, model)

    async def _take(self, message) -> None:
        self.sent.append(dict(message))

    def send(self, *messages: dict) -> None:
        async def all_of_them() -> None:
            for message in messages:
                await self.watched(message)

        asyncio.run(all_of_them())


START = {"type": "http.response.start", "status": 200, "headers": []}


def body(content: dict | bytes, more: bool = False) -> dict:
    raw = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
    return {"type": "http.response.body", "body": raw, "more_body": more}


def test_a_bad_answer_becomes_a_503_with_its_verdict_and_nothing_of_it_passes(admission: Admission):
    watch = AnswerWatch(admission)
    answer = Answer(watch, name(2))
    watch.note(name(2), is_finite=False)
    answer.send(START, body(b"!!!!!"))
    assert answer.sent[0]["status"] == 503
    assert (b"x-openmint-verdict", b"suspect") in answer.sent[0]["headers"]
    assert b"!!!!!" not in answer.sent[1]["body"]
    assert len(answer.sent) == 2


def test_a_stream_breaks_off_where_the_numbers_end(admission: Admission):
    watch = AnswerWatch(admission)
    answer = Answer(watch, name(2))
    answer.send(START, body(b"data: good", more=True))
    watch.note(name(2), is_finite=False)
    with pytest.raises(AnswerBroken):
        answer.send(body(b"data: bad", more=True))
    assert [message.get("body") for message in answer.sent] == [None, b"data: good"]


def test_an_answer_that_logprobs_could_not_be_written_for_is_bad(admission: Admission):
    watch = AnswerWatch(admission)
    answer = Answer(watch, name(3))
    answer.send({**START, "status": 400}, body(b'{"error":"Out of range float values are not JSON compliant"}'))
    assert watch.suspicion is not None
    assert watch.bad_answers(name(3)) == 1


@pytest.mark.parametrize(
    ("text", "finish", "is_doubtful"), [("", "length", True), ("", "stop", False), ("word", "length", False)]
)
def test_an_empty_text_that_no_end_of_sequence_explains_is_worth_a_probe(
    admission: Admission, text: str, finish: str, is_doubtful: bool
):
    answer = Answer(AnswerWatch(admission))
    answer.send(START, body({"choices": [{"text": text, "finish_reason": finish}]}))
    assert answer.watched.is_doubtful is is_doubtful
