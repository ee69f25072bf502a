import orjson
import pytest

from openmint.errors import EngineFailed
from openmint_gateway.event_splitter import EventSplitter

ENGINE_MODEL = "acme/support@sha256:ab#3"
CHUNK = {
    "id": "1",
    "object": "chat.completion.chunk",
    "model": ENGINE_MODEL,
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}],
}
USAGE = {"id": "1", "model": ENGINE_MODEL, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def event(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def make_splitter(*, wants_usage: bool = False) -> EventSplitter:
    return EventSplitter(ENGINE_MODEL, "acme/support@canary", "acme/support@sha256:ab", wants_usage=wants_usage)


def bodies(data: bytes) -> list[dict[str, object]]:
    return [orjson.loads(part[6:]) for part in data.split(b"\n\n") if part.startswith(b"data: {")]


def test_the_model_is_written_back_and_the_fingerprint_put_beside_it():
    (body,) = bodies(make_splitter().feed(event(CHUNK)))
    assert body == {**CHUNK, "model": "acme/support@canary", "system_fingerprint": "acme/support@sha256:ab"}


def test_events_cut_anywhere_come_out_whole_and_the_same():
    data = event(CHUNK) * 3 + b": comment\n\n" + event(USAGE) + b"data: [DONE]\n\n"
    whole = make_splitter(wants_usage=True).feed(data)
    for size in (1, 2, 7, 50):
        splitter = make_splitter(wants_usage=True)
        assert b"".join(splitter.feed(data[at : at + size]) for at in range(0, len(data), size)) == whole
        assert splitter.tally.is_done
        assert splitter.tally.completion_tokens == 2


def test_usage_that_the_caller_did_not_ask_for_is_counted_and_left_out():
    splitter = make_splitter()
    out = splitter.feed(event(CHUNK) + event(USAGE) + b"data: [DONE]\n\n")
    assert b"usage" not in out
    assert (splitter.tally.prompt_tokens, splitter.tally.completion_tokens) == (5, 2)
    assert splitter.tally.events == 1


def test_text_that_looks_like_the_model_field_is_left_alone():
    content = f'say "model":"{ENGINE_MODEL}" twice'
    chunk = {**CHUNK, "choices": [{"index": 0, "delta": {"content": content}}]}
    (body,) = bodies(make_splitter().feed(event(chunk)))
    assert body["choices"] == chunk["choices"]
    assert body["model"] == "acme/support@canary"


def test_an_event_with_blanks_or_a_fingerprint_of_its_own_is_rewritten_too():
    spaced = b'data: {"id": "1", "model": "' + ENGINE_MODEL.encode() + b'", "system_fingerprint": null}\n\n'
    (body,) = bodies(make_splitter().feed(spaced))
    assert body == {"id": "1", "model": "acme/support@canary", "system_fingerprint": "acme/support@sha256:ab"}


def test_an_error_inside_the_stream_is_noted_and_passed_on():
    splitter = make_splitter()
    out = splitter.feed(event({"error": {"message": "out of memory", "code": 500}}))
    assert splitter.tally.error == "out of memory"
    assert b"out of memory" in out


def test_an_event_without_end_is_refused():
    splitter = make_splitter()
    with pytest.raises(EngineFailed):
        for _ in range(20):
            splitter.feed(b"x" * 100_000)


def test_an_event_that_is_not_json_is_refused():
    with pytest.raises(EngineFailed):
        make_splitter().feed(b'data: {"error": nonsense}\n\n')
