from datetime import UTC, datetime
from uuid import UUID

import pytest

from openmint.catalog.keys import hash_secret
from openmint.catalog.migrate import migration_files
from openmint.catalog.outbox_rows import cloud_event_headers
from openmint.catalog.rows import dump_json, load_json
from openmint.events import JobCancelled


def test_a_fact_goes_out_as_a_cloud_event() -> None:
    fact = JobCancelled(
        event_id=UUID(int=1),
        occurred_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        causation_id="JOBS-7",
        tenant="acme",
        job_id=UUID(int=2),
        policy="poet",
        base="tiny",
    )
    assert cloud_event_headers(fact, "trainer") == {
        "ce-specversion": "1.0",
        "ce-id": "00000000-0000-0000-0000-000000000001",
        "ce-type": "openmint.job.cancelled.v1",
        "ce-source": "openmint/trainer",
        "ce-time": "2026-01-02T03:04:05+00:00",
        "ce-causationid": "JOBS-7",
        "content-type": "application/json",
        "Nats-Msg-Id": "00000000-0000-0000-0000-000000000001",
    }


def test_the_pepper_changes_the_hash() -> None:
    assert hash_secret("secret", b"a") != hash_secret("secret", b"b")
    assert len(hash_secret("secret")) == 32


def test_json_for_the_catalogue_holds_no_nan() -> None:
    assert load_json(dump_json({"a": [1, None]})) == {"a": [1, None]}
    assert load_json(None) is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"loss": float("nan")})


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [int(name.split("_")[0]) for name, _ in migration_files()]
    assert numbers == list(range(1, len(numbers) + 1))
