"""A schema may only grow; each way of breaking a stranger is told."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from openmint.events import AliasMoved, JobRefused, TrainRequested
from openmint.events.base import Event
from openmint.events.compatibility import compatibility_problems
from openmint.events.published import schema_of
from openmint.events.registry import event_classes

Schema = dict[str, Any]


@pytest.mark.parametrize("event_class", event_classes(), ids=lambda c: c.__name__)
def test_schema_is_compatible_with_itself(event_class: type[Event]) -> None:
    assert compatibility_problems(schema_of(event_class), schema_of(event_class)) == []


def test_new_optional_field_is_additive() -> None:
    old, new = schema_of(JobRefused), schema_of(JobRefused)
    new["properties"]["hint"] = {"type": "string", "default": ""}
    assert compatibility_problems(old, new) == []


def test_enum_may_grow() -> None:
    old, new = schema_of(TrainRequested), schema_of(TrainRequested)
    new["$defs"]["OptimizerSpec"]["properties"]["schedule"]["enum"].append("step")
    assert compatibility_problems(old, new) == []


def _drop(schema: Schema) -> None:
    del schema["properties"]["policy"]


def _require_known(schema: Schema) -> None:
    schema["required"].append("idempotency_key")


def _require_new(schema: Schema) -> None:
    schema["properties"]["region"] = {"type": "string"}
    schema["required"].append("region")


def _retype(schema: Schema) -> None:
    schema["$defs"]["TrainingSpec"]["properties"]["steps"]["type"] = "string"


def _retype_items(schema: Schema) -> None:
    schema["$defs"]["TrainingSpec"]["properties"]["revision_at_steps"]["items"]["type"] = "string"


def _narrow(schema: Schema) -> None:
    schema["$defs"]["AdapterSpec"]["properties"]["rank"]["maximum"] = 64


def _bound(schema: Schema) -> None:
    schema["$defs"]["TrainingSpec"]["properties"]["checkpoint_every_steps"]["maximum"] = 100


def _forget_value(schema: Schema) -> None:
    schema["$defs"]["OptimizerSpec"]["properties"]["schedule"]["enum"].remove("cosine")


def _repattern(schema: Schema) -> None:
    schema["properties"]["policy"]["pattern"] = "^[a-z]+$"


def _drop_nested(schema: Schema) -> None:
    del schema["$defs"]["DatasetRef"]["properties"]["digest"]


def _forbid_null(schema: Schema) -> None:
    schema["properties"]["idempotency_key"] = {"type": "string"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop, "policy: the field is gone"),
        (_require_known, "idempotency_key: the field has become required"),
        (_require_new, "region: the field is new and required"),
        (_retype, "training.steps: type integer is no longer allowed"),
        (_retype_items, "training.revision_at_steps[]: type integer is no longer allowed"),
        (_narrow, "adapter.rank: maximum went from 256 to 64"),
        (_bound, "training.checkpoint_every_steps: maximum went from None to 100"),
        (_forget_value, "optimizer.schedule: the values ['cosine'] are gone"),
        (_repattern, "policy: the pattern is now '^[a-z]+$'"),
        (_drop_nested, "dataset.digest: the field is gone"),
        (_forbid_null, "idempotency_key: type null is no longer allowed"),
    ],
)
def test_change_that_breaks_a_producer_is_told(change: Callable[[Schema], None], told: str) -> None:
    old = schema_of(TrainRequested)
    new = copy.deepcopy(old)
    change(new)
    assert told in compatibility_problems(old, new)


def test_removed_field_of_a_fact_breaks_its_consumers() -> None:
    old = schema_of(AliasMoved)
    new = copy.deepcopy(old)
    del new["$defs"]["AliasTarget"]["properties"]["digest"]
    assert "targets[].digest: the field is gone" in compatibility_problems(old, new)


def test_type_that_old_readers_do_not_know_is_told() -> None:
    old = schema_of(AliasMoved)
    new = copy.deepcopy(old)
    new["properties"]["alias_version"] = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert any("type string is new" in problem for problem in compatibility_problems(old, new))
