import orjson
import pytest

from openmint.errors import BadEvent
from openmint_gateway.train_request import BadSchema, parse_train_request

GOOD = {
    "policy": "support",
    "base": "tiny",
    "dataset": {"rows": [{"prompt": "a", "completion": "b"}]},
}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b'{"a":'])
def test_a_body_that_is_no_json_object_can_not_be_read(body: bytes):
    with pytest.raises(BadEvent):
        parse_train_request(body)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"optimizer": {"learning_rat": 0.1}}, "optimizer.learning_rat"),
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"adapter": {"rank": 10_000}}, "adapter.rank"),
        ({"policy": "No Such Name"}, "policy"),
        ({"base": None}, "base"),
        ({"dataset": None}, "dataset"),
        ({"dataset": {}}, "dataset"),
        ({"dataset": {"rows": [], "digest": "sha256:" + "0" * 64}}, "dataset"),
        ({"training": {"steps": -1}}, "training.steps"),
        ({"recipe": "alchemy"}, "recipe"),
        ({"evaluation": {"scorer": "label", "labels": ["a"]}}, "evaluation"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], field: str):
    with pytest.raises(BadSchema) as caught:
        parse_train_request(orjson.dumps({**GOOD, **change}))
    assert caught.value.field == field
    assert field.rpartition(".")[2] in caught.value.detail


def test_a_missing_field_is_named():
    with pytest.raises(BadSchema, match="dataset: this field is required"):
        parse_train_request(orjson.dumps({"policy": "a", "base": "b"}))


def test_fields_of_ones_own_are_kept():
    request = parse_train_request(orjson.dumps({**GOOD, "x_team": "search"}))
    assert request.model_extra == {"x_team": "search"}
