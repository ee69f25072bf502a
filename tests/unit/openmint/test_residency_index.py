import asyncio
from uuid import UUID

import pytest

from openmint.engines.loads import error_of
from openmint.engines.protocol import Resident
from openmint.engines.residency_index import SETTLE_S, SILENCE_S, ResidencyIndex
from openmint.engines.resident_list import ResidentList
from openmint.errors import LoadFailed, LoadTimeout, NoEngine, Overloaded
from openmint.events import AdapterGone, AdapterResident, Cause, EngineHeartbeat, EngineLeft
from openmint.events import LoadFailed as LoadFailedFact

A, B = (f"sha256:{number:064x}" for number in (10, 11))
KEY = ("base", "serve", A)


def beat(engine="e1", boot=1, pools=("serve",), state="ready", list_hash=""):
    return EngineHeartbeat(
        base="base", base_digest=B, engine=engine, boot_id=UUID(int=boot), pools=list(pools), url=f"http://{engine}",
        control_url=f"http://{engine}:1", state=state, capacity=8, max_rank=16, list_version=1, list_hash=list_hash,
    )  # fmt: skip


def resident(digest=A, sequence=1, name="acme/p@a#1", engine="e1", boot=1, pools=("serve",)):
    return AdapterResident(
        base="base", engine=engine, boot_id=UUID(int=boot), sequence=sequence, digest=digest, adapter_name=name,
        url=f"http://{engine}", pools=list(pools),
    )  # fmt: skip


def gone(digest=A, sequence=2, name="acme/p@a#1", engine="e1", boot=1):
    return AdapterGone(
        base="base", engine=engine, boot_id=UUID(int=boot), sequence=sequence, digest=digest, adapter_name=name
    )


def listed(*residents, boot=1):
    return ResidentList(
        engine="e1", base="base", boot_id=UUID(int=boot), pools=["serve"], url="http://e1", list_version=2,
        residents=[Resident(digest, name, 0, 1) for digest, name in residents],
    )  # fmt: skip


@pytest.fixture
def index():
    made = ResidencyIndex()
    made.heartbeat(beat(), 0.0)
    return made


def names(index, key=KEY):
    return [place.adapter_name for place in index.placements(key)]


def test_facts_come_and_go_in_the_order_of_their_sequence(index):
    index.resident(resident(sequence=3), 1.0)
    index.gone(gone(sequence=2), 1.0)  # Told late: an older load.
    assert names(index) == ["acme/p@a#1"]
    index.gone(gone(sequence=4), 1.0)
    assert names(index) == []
    index.resident(resident(sequence=3), 1.0)
    assert names(index) == []


def test_a_fact_of_another_boot_changes_nothing(index):
    index.resident(resident(boot=2), 1.0)
    assert names(index) == []


def test_another_boot_empties_the_engine(index):
    index.resident(resident(), 1.0)
    index.heartbeat(beat(boot=2), 2.0)
    assert names(index) == []
    assert names(index, ("base", "serve", "")) == ["base"]


def test_an_engine_that_is_silent_or_has_left_is_forgotten(index):
    index.resident(resident(), 0.0)
    index.heartbeat(beat("e2"), 4.0)
    assert index.forget_silent(SILENCE_S + 0.1) == ["e1"]
    assert names(index) == []
    index.left(EngineLeft(base="base", engine="e2", boot_id=UUID(int=9)))
    assert index.has_engine("base", "serve")
    index.left(EngineLeft(base="base", engine="e2", boot_id=UUID(int=1)))
    assert not index.has_engine("base", "serve")


def test_a_draining_engine_is_alive_but_gets_no_requests(index):
    index.resident(resident(), 1.0)
    index.heartbeat(beat(state="draining"), 1.0)
    assert names(index) == [] and names(index, ("base", "serve", "")) == []
    assert index.has_engine("base", "serve")
    index.heartbeat(beat(), 2.0)
    assert names(index) == ["acme/p@a#1"]


def test_a_cold_start_takes_the_list(index):
    index.listed(listed((A, "acme/p@a#7"), (B, "acme/p@b#2")), asked_s=10.0, now_s=10.1)
    assert names(index) == ["acme/p@a#7"]
    assert names(index, ("base", "serve", B)) == ["acme/p@b#2"]


def test_a_list_repairs_what_was_missed_but_not_what_is_newer(index):
    index.resident(resident(digest=B, name="acme/p@b#1"), 1.0)
    index.resident(resident(digest=A, sequence=2), 10.0)
    index.listed(listed(), asked_s=10.0 + SETTLE_S / 2, now_s=10.0 + SETTLE_S / 2)
    assert names(index, ("base", "serve", B)) == []  # Its `gone` was missed.
    assert names(index) == ["acme/p@a#1"]  # Told after the pulse that the list may come from.
    index.listed(listed(), asked_s=20.0, now_s=20.0)
    assert names(index) == []


def test_a_list_of_another_boot_is_ignored(index):
    index.listed(listed((A, "acme/p@a#7"), boot=2), asked_s=10.0, now_s=10.0)
    assert names(index) == []


def test_pools_are_apart(index):
    index.heartbeat(beat("gate", pools=("gate-fp32",)), 0.0)
    index.resident(resident(engine="gate", pools=("gate-fp32",)), 1.0)
    assert names(index) == []
    assert names(index, ("base", "gate-fp32", A)) == ["acme/p@a#1"]


async def test_who_expects_a_revision_is_told_and_nothing_is_left_behind(index):
    first, second = index.expect(KEY), index.expect(KEY)
    second.cancel()
    index.resident(resident(), 1.0)
    assert (await first).engine == "e1"
    await asyncio.sleep(0)
    assert not index._expected


def test_the_known_hash_is_that_of_the_engine(index):
    index.resident(resident(digest=A, name="y"), 1.0)
    index.resident(resident(digest=B, name="x"), 1.0)
    assert index.engines["e1"].known_hash() == "9ab9de25768ac172"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("overloaded", Overloaded), ("load_timeout", LoadTimeout), ("no_engine", NoEngine), ("bad_adapter", LoadFailed),
     ("load_failed", LoadFailed), ("something_new", LoadFailed)],
)  # fmt: skip
def test_a_failed_load_raises_what_its_cause_says(code, kind):
    fact = LoadFailedFact(base="base", pool="serve", digest=A, cause=Cause(code=code, detail="why"), retry_after_s=3.0)
    error = error_of(fact)
    assert type(error) is kind
    assert "why" in error.detail
    assert error.retry_after_s == 3.0
