import orjson
import pytest

from openmint.errors import BadRequest
from openmint_gateway.inference_fields import CHAT_FIELDS, COMPLETION_FIELDS, read_inference_request

HELLO = [{"role": "user", "content": "hello"}]
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]


def read_chat(**fields: object):
    return read_inference_request(orjson.dumps({"model": "m", "messages": HELLO, **fields}), CHAT_FIELDS, "messages")


def read_completion(**fields: object):
    return read_inference_request(orjson.dumps({"model": "m", "prompt": "hi", **fields}), COMPLETION_FIELDS, "prompt")


def nested(depth: int) -> object:
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temprature": 1}, "temprature"),
        ({"cache_salt": "mine"}, "cache_salt"),
        ({"priority": 1}, "priority"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"lora_request": {}}, "lora_request"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"stop": "x" * 65}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"response_format": {"type": "regex"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": nested(20)}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"x": "y" * 40_000}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"$ref": "http://x"}}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "evil": 1}]}, "messages.0.evil"),
        (
            {"messages": PICTURE},
            "messages.0.content",
        ),
        ({"messages": HELLO * 5000}, "messages"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
        ({"model": "m" * 300}, "model"),
        ({"tools": [{"type": "web"}]}, "tools"),
    ],
)
def test_a_field_that_is_unknown_or_out_of_bounds_is_named(fields: dict[str, object], named: str):
    with pytest.raises(BadRequest) as caught:
        read_chat(**fields)
    assert caught.value.field == named
    assert named.split(".")[0] in caught.value.detail


@pytest.mark.parametrize(
    "prompt", ["", [], [["x"]], [1, "x"], [-1], [2**40], ["x"] * 65, {"text": "x"}, [True], 7], ids=str
)
def test_a_prompt_of_another_form_is_refused(prompt: object):
    with pytest.raises(BadRequest) as caught:
        read_completion(prompt=prompt)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b'"x"', b"null", b'{"model": NaN}', b'{"a":"\\ud800"}', b"[" * 5000, b"\xff\xfe"]
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes):
    with pytest.raises(BadRequest) as caught:
        read_inference_request(body, CHAT_FIELDS, "messages")
    assert caught.value.field == "body"


def test_what_openai_clients_send_is_taken():
    request = read_chat(
        stream=True, temperature=0.5, top_p=None, n=2, stop=["a"], seed=1, logprobs=True, top_logprobs=5, max_tokens=10
    )
    assert request.is_stream
    assert (request.sequences, request.asked_tokens) == (2, 10)
    assert request.prompt_cost == request.body_bytes / 64
    assert "top_p" not in request.body
    assert read_completion(prompt=[[1, 2], [3]], echo=True, logprobs=0).body["echo"] is True


def test_usage_is_asked_for_in_every_stream_and_the_callers_wish_is_kept():
    silent = read_chat(stream=True)
    assert silent.body["stream_options"] == {"include_usage": True}
    assert not silent.wants_usage
    assert read_chat(stream=True, stream_options={"include_usage": True}).wants_usage
    assert "stream_options" not in read_chat().body


def test_the_user_field_is_taken_and_never_reaches_an_engine():
    assert "user" not in read_chat(user="anna").body
