"""What lies in schemas/ is what the classes say, and what was published once keeps its word.

`tests/golden/events/<release>/` holds the schemas and examples of each release. Nothing in it is changed or removed.
"""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from openmint.bus.messages import decode
from openmint.bus.streams import STREAMS, stream_of
from openmint.events import Command, Fact, JobProgressed, TrainRequested
from openmint.events.base import Event
from openmint.events.compatibility import compatibility_problems
from openmint.events.examples import example_subject, examples
from openmint.events.published import differences, schema_of
from openmint.events.registry import event_classes, find_event_class, main

ROOT = Path(__file__).parents[3]
SCHEMAS = ROOT / "schemas"
RELEASES = ROOT / "tests" / "golden" / "events"


def _class_of(path: Path) -> type[Event]:
    name, _, version = path.stem.rpartition(".v")
    area, _, verb = name.partition("_")
    found = find_event_class(f"openmint.{area}.{verb}.v{version}")
    assert found is not None, f"{path.name} was published and has no class any more"
    return found


def test_schemas_in_the_tree_are_those_of_the_classes() -> None:
    assert differences(SCHEMAS) == []


@pytest.mark.parametrize("path", sorted(RELEASES.glob("*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_published_schema_is_still_kept(path: Path) -> None:
    assert compatibility_problems(json.loads(path.read_text()), schema_of(_class_of(path))) == []


@pytest.mark.parametrize(
    "path",
    sorted([*RELEASES.glob("*/examples/*.json"), *SCHEMAS.glob("examples/*.json")]),
    ids=lambda p: f"{p.parent.parent.name}/{p.stem}",
)
def test_published_example_still_parses(path: Path) -> None:
    _class_of(path).model_validate_json(path.read_bytes())


@pytest.mark.parametrize("event", examples().values(), ids=lambda e: type(e).__name__)
def test_example_is_read_back_from_the_bus_as_it_was(event: Event) -> None:
    subject = example_subject(event)
    assert decode({}, subject, event.model_dump_json(exclude_none=True).encode(), "S", 1).event == event


def test_every_event_has_an_example_and_a_type_of_its_own() -> None:
    classes = event_classes()
    assert set(examples()) == set(classes)
    assert len({event_class.event_type() for event_class in classes}) == len(classes)


def test_every_event_is_a_command_or_a_fact() -> None:
    assert [c for c in event_classes() if not issubclass(c, Command | Fact)] == []


def test_soft_progress_is_in_no_stream_and_streams_do_not_overlap() -> None:
    assert stream_of(JobProgressed.subject_filter()) is None
    subjects = [subject.removesuffix(">") for plan in STREAMS for subject in plan.subjects]
    assert [(a, b) for a in subjects for b in subjects if a is not b and a.startswith(b)] == []


def test_check_tells_a_removed_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "schemas"
    shutil.copytree(SCHEMAS, folder)
    path = folder / "job_started.v1.json"
    schema = json.loads(path.read_text())
    schema["properties"]["trainer"] = {"type": "string"}
    path.write_text(json.dumps(schema))
    assert main(["--check", str(folder)]) == 1
    told = capsys.readouterr().err
    assert "job_started.v1.json: trainer: the field is gone" in told
    assert main(["--check", str(SCHEMAS)]) == 0


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    assert main(["--write", str(tmp_path)]) == 0
    assert differences(tmp_path) == []


def test_command_refuses_an_unknown_field_and_takes_a_strangers_own() -> None:
    body = json.loads((SCHEMAS / "examples" / "train_requested.v1.json").read_text())
    TrainRequested.model_validate(body | {"x_anything": {"a": 1}})
    with pytest.raises(ValidationError, match="unknown field 'learning_rat'"):
        TrainRequested.model_validate(body | {"learning_rat": 1})


def test_fact_ignores_an_unknown_field() -> None:
    body = json.loads((SCHEMAS / "examples" / "job_started.v1.json").read_text())
    event_class = find_event_class("openmint.job.started.v1")
    assert event_class is not None
    event_class.model_validate(body | {"news": 1})


def test_asyncapi_document_leads_from_each_channel_to_its_schema() -> None:
    document = json.loads((SCHEMAS / "asyncapi.json").read_text())
    assert document["asyncapi"] == "3.0.0"
    assert len(document["channels"]) == len(event_classes())
    for channel in document["channels"].values():
        (message,) = channel["messages"].values()
        name = message["$ref"].rpartition("/")[2]
        payload = document["components"]["messages"][name]["payload"]["$ref"].rpartition("/")[2]
        assert payload in document["components"]["schemas"]
    assert document["channels"]["train_requested_v1"]["x-stream"] == "JOBS"
    assert document["channels"]["job_progressed_v1"]["x-stream"] is None
