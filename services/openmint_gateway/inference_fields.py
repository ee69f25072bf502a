"""The published allow-list: which fields an inference request may carry, and their bounds.

Whatever is not named here is refused by name: nothing reaches an engine that was not looked at.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import orjson

from openmint.errors import BadRequest
from openmint_gateway.problems import JsonObject

Check = Callable[[str, object], None]

MAX_MODEL_LENGTH = 256
MAX_CHOICES = 16
MAX_STOPS = 8
MAX_STOP_LENGTH = 64
MAX_LOGIT_BIASES = 300
MAX_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_SCHEMA_BYTES = 32 * 1024
MAX_DEPTH = 16
MAX_TOKENS = 1_000_000
MAX_PROMPTS = 64
MAX_TOOLS = 128

BYTES_PER_COST = 64
"""About four bytes a token, and sixteen prompt tokens take an engine as long as one that it generates."""


def _refuse(field: str, what: str) -> BadRequest:
    return BadRequest(f"{field} {what}", field=field)


def number(low: float, high: float) -> Check:
    """A finite number within bounds."""

    def check(field: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _refuse(field, "must be a number")
        if not low <= value <= high:
            raise _refuse(field, f"must be between {low:g} and {high:g}")

    return check


def integer(low: int, high: int) -> Check:
    """A whole number within bounds."""

    def check(field: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _refuse(field, "must be a whole number")
        if not low <= value <= high:
            raise _refuse(field, f"must be between {low} and {high}")

    return check


def text(max_length: int) -> Check:
    """A text of bounded length."""

    def check(field: str, value: object) -> None:
        if not isinstance(value, str):
            raise _refuse(field, "must be a text")
        if len(value) > max_length:
            raise _refuse(field, f"is longer than {max_length} characters")

    return check


def flag(field: str, value: object) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _refuse(field, "must be true or false")


def one_of(*allowed: str) -> Check:
    """One of a few words."""

    def check(field: str, value: object) -> None:
        if value not in allowed:
            raise _refuse(field, f"must be one of {', '.join(allowed)}")

    return check


def _stop(field: str, value: object) -> None:
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise _refuse(field, f"has more than {MAX_STOPS} texts")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise _refuse(field, f"must be a text, or a list of texts, of 1 to {MAX_STOP_LENGTH} characters")


def _token_ids(limit: int) -> Check:
    def check(field: str, value: object) -> None:
        if not isinstance(value, list) or len(value) > limit:
            raise _refuse(field, f"must be a list of at most {limit} token ids")
        for token in value:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
                raise _refuse(field, "must hold token ids")

    return check


def _logit_bias(field: str, value: object) -> None:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIASES:
        raise _refuse(field, f"must be an object with at most {MAX_LOGIT_BIASES} entries")
    bias = number(-100, 100)
    for token, amount in value.items():
        if not token.isascii() or not token.isdigit() or len(token) > 10:
            raise _refuse(field, "must have token ids as keys")
        bias(f"{field}.{token}", amount)


def _stream_options(field: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _refuse(field, "must be an object")
    for name, setting in value.items():
        if name not in ("include_usage", "continuous_usage_stats"):
            raise _refuse(f"{field}.{name[:80]}", "is not a field that openmint knows")
        flag(f"{field}.{name}", setting)


def _depth(value: object, left: int = MAX_DEPTH) -> bool:
    if not isinstance(value, dict | list):
        return True
    if left == 0:
        return False
    return all(_depth(part, left - 1) for part in (value.values() if isinstance(value, dict) else value))


def _bounded(field: str, value: object) -> None:
    if not _depth(value):
        raise _refuse(field, f"is nested deeper than {MAX_DEPTH}")
    dumped = orjson.dumps(value)
    if len(dumped) > MAX_SCHEMA_BYTES:
        raise _refuse(field, f"is larger than {MAX_SCHEMA_BYTES} bytes")
    if b'"$ref":"http' in dumped:
        raise _refuse(field, "refers to something on the network")


def _response_format(field: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _refuse(field, "must be an object")
    one_of("text", "json_object", "json_schema")(f"{field}.type", value.get("type"))
    _only(field, value, {"type", "json_schema"})
    _bounded(field, value)


def _tools(field: str, value: object) -> None:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise _refuse(field, f"must be a list of at most {MAX_TOOLS} tools")
    for tool in value:
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise _refuse(field, "must hold objects of type function")
        _bounded(field, tool)


def _tool_choice(field: str, value: object) -> None:
    if isinstance(value, str):
        one_of("none", "auto", "required")(field, value)
    else:
        _bounded(field, value)


def _only(field: str, value: Mapping[str, object], allowed: set[str]) -> None:
    for name in value:
        if name not in allowed:
            raise _refuse(f"{field}.{name[:80]}", "is not a field that openmint knows")


_MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content"}
_ROLE = one_of("system", "developer", "user", "assistant", "tool")


def _messages(field: str, value: object) -> None:
    if not isinstance(value, list) or not value:
        raise _refuse(field, "must be a list with at least one message")
    if len(value) > MAX_MESSAGES:
        raise _refuse(field, f"has more than {MAX_MESSAGES} messages")
    for index, message in enumerate(value):
        _message(f"{field}.{index}", message)


def _message(field: str, message: object) -> None:
    if not isinstance(message, dict):
        raise _refuse(field, "must be an object")
    _only(field, message, _MESSAGE_FIELDS)
    _ROLE(f"{field}.role", message.get("role"))
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _refuse(f"{field}.content", "may hold parts of type text alone")
            _only(f"{field}.content", part, {"type", "text"})
    elif content is None:
        if not message.get("tool_calls"):
            raise _refuse(f"{field}.content", "is missing")
    elif not isinstance(content, str):
        raise _refuse(f"{field}.content", "must be a text")
    if "tool_calls" in message:
        _bounded(f"{field}.tool_calls", message["tool_calls"])


def _prompt(field: str, value: object) -> None:
    if isinstance(value, str):
        if not value:
            raise _refuse(field, "is empty")
        return
    if not isinstance(value, list) or not value:
        raise _refuse(field, "must be a text, a list of texts, or token ids")
    if isinstance(value[0], int):
        _token_ids(MAX_TOKENS)(field, value)
        return
    if len(value) > MAX_PROMPTS:
        raise _refuse(field, f"has more than {MAX_PROMPTS} prompts")
    for prompt in value:
        if isinstance(prompt, list):
            _token_ids(MAX_TOKENS)(field, prompt)
        elif not isinstance(prompt, str):
            raise _refuse(field, "must be a text, a list of texts, or token ids")


_COMMON: dict[str, Check] = {
    "model": text(MAX_MODEL_LENGTH),
    "stream": flag,
    "stream_options": _stream_options,
    "max_tokens": integer(1, MAX_TOKENS),
    "min_tokens": integer(0, MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(-1, 1_000_000),
    "min_p": number(0, 1),
    "n": integer(1, MAX_CHOICES),
    "stop": _stop,
    "stop_token_ids": _token_ids(256),
    "seed": integer(-(2**63), 2**63 - 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0.01, 10),
    "logit_bias": _logit_bias,
    "ignore_eos": flag,
    "skip_special_tokens": flag,
    "include_stop_str_in_output": flag,
    "return_token_ids": flag,
    "return_tokens_as_token_ids": flag,
    "add_special_tokens": flag,
    "response_format": _response_format,
    "user": text(256),
}

CHAT_FIELDS: dict[str, Check] = {
    **_COMMON,
    "messages": _messages,
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "logprobs": flag,
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": flag,
    "add_generation_prompt": flag,
    "continue_final_message": flag,
}

COMPLETION_FIELDS: dict[str, Check] = {
    **_COMMON,
    "prompt": _prompt,
    "echo": flag,
    "logprobs": integer(0, MAX_LOGPROBS),
}

_OURS_ALONE = frozenset({"user"})
"""Fields that are taken but say nothing to an engine."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request that was checked. `body` holds what an engine gets, `model` what the caller said."""

    model: str
    body: JsonObject
    is_stream: bool
    wants_usage: bool
    body_bytes: int = 0

    @property
    def sequences(self) -> int:
        """What an engine runs for it: prompts times choices."""
        choices = int(self.body.get("n") or 1)
        prompt = self.body.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return choices * len(cast(list[object], prompt))
        return choices

    @property
    def asked_tokens(self) -> int | None:
        """The most that a sequence may generate, if the caller said so."""
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens")

    @property
    def prompt_cost(self) -> float:
        """What reading the prompt costs an engine, in tokens that are generated."""
        return self.body_bytes / BYTES_PER_COST


def read_inference_request(body: bytes, fields: Mapping[str, Check], required: str) -> InferenceRequest:
    """Read and check a body. Raises: BadRequest naming the field."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", field="body") from error
    if not isinstance(content, dict):
        raise BadRequest("the body is not a JSON object", field="body")
    for name, value in content.items():
        check = fields.get(name)
        if check is None:
            raise BadRequest(f"{name[:80]!r} is not a field that openmint knows", field=name[:80])
        # A null means the default, as OpenAI's clients send it; but not where something must be said.
        if value is not None:
            check(name, value)
    for name in ("model", required):
        if content.get(name) is None:
            raise BadRequest(f"{name} is missing", field=name)
    options = content.get("stream_options") or {}
    is_stream = bool(content.get("stream"))
    if options and not is_stream:
        raise BadRequest("stream_options is for streams alone", field="stream_options")
    forwarded = {name: value for name, value in content.items() if value is not None and name not in _OURS_ALONE}
    if is_stream:
        # Asked for always: usage is counted for every stream, and taken out again for a caller who did not ask.
        forwarded["stream_options"] = {**options, "include_usage": True}
    return InferenceRequest(content["model"], forwarded, is_stream, bool(options.get("include_usage")), len(body))
