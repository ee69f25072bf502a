import pytest

from openmint_engine_host.plugin.admission import Admission, Refusal, ResidentAdapter, Ticket

BASE = "tiny"


def make_admission(max_running: int = 4, margin: int = 1, tenant_share: float = 1.0) -> Admission:
    admission = Admission(BASE, max_running, margin, tenant_share)
    admission.closed_because = ""
    return admission


def make_adapter(name: str = "acme/tone@0123#1000", digest: str = "sha256:" + "1" * 64) -> ResidentAdapter:
    return ResidentAdapter(name, digest, 1000, "/nowhere", 10)


def admit(admission: Admission, model: str = BASE, tenant: str = "acme", sequences: int = 1) -> Ticket:
    ticket = admission.admit(model, tenant, sequences)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def verdict(admission: Admission, model: str = BASE, tenant: str = "acme", sequences: int = 1) -> str:
    refusal = admission.admit(model, tenant, sequences)
    assert isinstance(refusal, Refusal), refusal
    return refusal.verdict


def test_a_new_engine_admits_nothing_until_it_is_opened():
    admission = Admission(BASE, 4, 1, 1.0)
    assert verdict(admission) == "busy"


def test_admits_up_to_the_sequence_limit_and_a_margin_then_is_busy():
    admission = make_admission(max_running=4, margin=1)
    tickets = [admit(admission) for _ in range(5)]
    assert verdict(admission) == "busy"
    admission.release(tickets[0])
    admit(admission)


def test_a_tenant_gets_at_most_its_share():
    admission = make_admission(max_running=8, margin=0, tenant_share=0.5)
    for _ in range(4):
        admit(admission, tenant="greedy")
    assert verdict(admission, tenant="greedy") == "busy"
    admit(admission, tenant="modest")


def test_several_sequences_of_one_request_count_each():
    admission = make_admission(max_running=4, margin=0)
    ticket = admit(admission, sequences=3)
    assert verdict(admission, sequences=2) == "busy"
    admission.release(ticket)
    assert admission.in_flight == 0


def test_a_request_for_more_sequences_than_a_tenant_may_have_needs_an_idle_engine():
    admission = make_admission(max_running=4, margin=0)
    small = admit(admission)
    assert verdict(admission, sequences=100) == "busy"
    admission.release(small)
    assert admit(admission, sequences=100).sequences == 4


def test_an_unknown_model_is_absent_even_when_the_engine_is_full():
    admission = make_admission(max_running=1, margin=0)
    admit(admission)
    assert verdict(admission, model="acme/other@0123#7") == "absent"


def test_a_draining_adapter_is_absent_and_idle_when_its_last_request_ends():
    admission = make_admission()
    adapter = make_adapter()
    admission.add(adapter)
    ticket = admit(admission, model=adapter.name)
    adapter.is_draining = True
    assert verdict(admission, model=adapter.name) == "absent"
    assert not adapter.idle.is_set()
    admission.release(ticket)
    assert adapter.idle.is_set()


def test_a_ticket_names_the_digest_that_will_answer():
    admission = make_admission()
    adapter = make_adapter()
    admission.add(adapter)
    assert admit(admission, model=adapter.name).digest == adapter.digest
    assert admit(admission).digest == "base"


def test_the_list_version_rises_with_each_change_and_equal_lists_have_equal_hashes():
    admission = make_admission()
    empty = admission.list_hash()
    admission.add(make_adapter())
    assert admission.list_version == 1
    assert admission.list_hash() != empty
    admission.discard(make_adapter().name)
    assert admission.list_version == 2
    assert admission.list_hash() == empty


@pytest.mark.parametrize("model", ["", "TINY", "tiny ", "acme/tone"])
def test_only_exact_names_are_known(model: str):
    admission = make_admission()
    admission.add(make_adapter())
    assert verdict(admission, model=model) == "absent"
