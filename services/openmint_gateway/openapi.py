"""The OpenAPI document: the control API's own, with the hot path's routes and the error forms put beside it.

`python -m openmint_gateway.openapi --write schemas/openapi.json` writes it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from openmint.events import TrainRequested
from openmint_gateway.asgi_input import MAX_WAIT_HEADER
from openmint_gateway.control.application import make_control_api
from openmint_gateway.inference_fields import CHAT_FIELDS, COMPLETION_FIELDS, Check

JsonObject = dict[str, Any]

_REF = "#/components/schemas/{model}"

_INFERENCE_ERROR: JsonObject = {"application/json": {"schema": {"$ref": _REF.format(model="InferenceError")}}}

_SHAPES: dict[str, JsonObject] = {
    "model": {"type": "string", "description": "tenant/policy, @alias, @7, @step-400, @sha256:…, or a base model"},
    "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    "prompt": {"description": "A text, a list of texts, or token ids"},
    "stream": {"type": "boolean"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "max_completion_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "seed": {"type": "integer"},
    "stop": {"description": "A text, or up to 8 texts, of 1 to 64 characters"},
}


def make_openapi() -> JsonObject:
    """The whole document."""
    document = make_control_api(None).openapi()
    schemas: JsonObject = document["components"]["schemas"]
    train = TrainRequested.model_json_schema(ref_template=_REF)
    schemas.update(train.pop("$defs", {}))
    schemas["TrainRequested"] = train
    schemas["Problem"] = _problem()
    schemas["InferenceError"] = _inference_error()
    schemas["ChatRequest"] = _request(CHAT_FIELDS, "messages")
    schemas["CompletionRequest"] = _request(COMPLETION_FIELDS, "prompt")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _declare_problems(path, operation)
    document["paths"].update(_hot_path())
    return document


def _request(fields: dict[str, Check], required: str) -> JsonObject:
    properties = {name: _SHAPES.get(name, {}) for name in sorted(fields)}
    return {
        "type": "object",
        "required": ["model", required],
        "properties": properties,
        "additionalProperties": False,
    }


def _problem() -> JsonObject:
    properties: JsonObject = {name: {"type": "string"} for name in ("type", "title", "detail", "code", "request_id")}
    properties |= {
        "status": {"type": "integer"},
        "retryable": {"type": "boolean"},
        "field": {"type": "string", "description": "The field of the request that is wrong"},
        "retry_after_s": {"type": "number"},
    }
    return {"type": "object", "required": ["type", "title", "status", "detail", "code"], "properties": properties}


def _inference_error() -> JsonObject:
    inner: JsonObject = {
        "type": "object",
        "required": ["message", "type", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": {"type": ["string", "null"]},
            "code": {"type": "string"},
        },
    }
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}


def _declare_problems(path: str, operation: JsonObject) -> None:
    responses: JsonObject = operation["responses"]
    responses.pop("422", None)
    if path in ("/healthz", "/readyz", "/metrics"):
        return
    content = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status in ("4XX", "5XX"):
        responses[status] = {"description": "An error", "content": content}


def _hot_path() -> JsonObject:
    return {
        "/v1/chat/completions": {"post": _inference("Chat with a policy or a base model", "ChatRequest")},
        "/v1/completions": {"post": _inference("Let a policy or a base model go on", "CompletionRequest")},
        "/v1/models": {"get": _models("The names that may stand in `model`", ["after"], "query")},
        "/v1/models/{model}": {"get": _models("One of them; revisions too", ["model"], "path")},
    }


def _inference(summary: str, body: str) -> JsonObject:
    headers: JsonObject = {
        "x-openmint-revision": {"schema": {"type": "string"}, "description": "The digest that answers, or `base`"},
        "x-openmint-request-id": {"schema": {"type": "string"}},
        "x-openmint-stale": {"schema": {"type": "string"}, "description": "true: the name could not be checked"},
    }
    return {
        "summary": summary,
        "tags": ["inference"],
        "security": [{"api_key": []}],
        "parameters": [
            {
                "name": MAX_WAIT_HEADER.decode(),
                "in": "header",
                "required": False,
                "schema": {"type": "number", "exclusiveMinimum": 0},
                "description": "Seconds to wait for the first token at most; what would take longer gets 429",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=body)}}},
        },
        "responses": {
            "200": {
                "description": "OpenAI's answer; a stream where it was asked for",
                "headers": headers,
                "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
            },
            "429": {
                "description": "Too many wait already, or the wait would be too long",
                "headers": {
                    "retry-after": {"schema": {"type": "integer"}, "description": "Seconds until its turn would come"}
                },
                "content": _INFERENCE_ERROR,
            },
            **_inference_errors(),
        },
    }


def _models(summary: str, parameters: list[str], place: str) -> JsonObject:
    return {
        "summary": summary,
        "tags": ["inference"],
        "security": [{"api_key": []}],
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
            for name in parameters
        ],
        "responses": {
            "200": {"description": "OpenAI's form", "content": {"application/json": {"schema": {"type": "object"}}}},
            **_inference_errors(),
        },
    }


def _inference_errors() -> JsonObject:
    return {status: {"description": "An error", "content": _INFERENCE_ERROR} for status in ("4XX", "5XX")}


def document_text() -> str:
    """As it is kept in `schemas/`."""
    return json.dumps(make_openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write or print the document."""
    parser = argparse.ArgumentParser(description="The gateway's OpenAPI document")
    parser.add_argument("--write", type=Path, help="where to; printed if left out")
    path: Path | None = parser.parse_args().write
    if path is None:
        print(document_text(), end="")
    else:
        path.write_text(document_text())


if __name__ == "__main__":
    main()
