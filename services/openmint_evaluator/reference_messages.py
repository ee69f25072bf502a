"""What the evaluator and its reference child say to each other: one JSON object per line, one answer per request."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class EncodeTexts(_Message):
    """Token ids of plain texts."""

    op: Literal["encode_texts"] = "encode_texts"
    texts: list[str]


class EncodeRows(_Message):
    """Token ids of held-out rows and labels."""

    op: Literal["encode_rows"] = "encode_rows"
    rows: list[dict[str, JsonValue]]
    labels: list[str]
    max_tokens: int


class ComputeLogprobs(_Message):
    """Logprobs of every token but the first of each sequence; adapter null is the base.

    One answer per scale: 1.0 is the adapter as it is, 0.5 the adapter at half strength.
    """

    op: Literal["logprobs"] = "logprobs"
    adapter: str | None
    scales: list[float] = [1.0]
    sequences: list[list[int]]


class DescribeReference(_Message):
    """Which software computes the reference."""

    op: Literal["describe"] = "describe"


Request = Annotated[EncodeTexts | EncodeRows | ComputeLogprobs | DescribeReference, Field(discriminator="op")]
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class EncodedTexts(_Message):
    """Answer to EncodeTexts."""

    token_ids: list[list[int]]


class EncodedRows(_Message):
    """Answer to EncodeRows: (prompt ids, completion ids, place in the labels or null) per row kept."""

    rows: list[tuple[list[int], list[int], int | None]]
    labels: list[list[int]]
    rendering: str
    left_out: int


class ComputedLogprobs(_Message):
    """Answer to ComputeLogprobs: per scale, all sequences' logprobs one after the other, in nats."""

    by_scale: list[list[float]]


class ReferenceDescription(_Message):
    """Answer to DescribeReference."""

    text: str


class Refusal(_Message):
    """The request could not be carried out. `code` is `bad_dataset`, `bad_adapter` or `internal`."""

    code: str
    detail: str
