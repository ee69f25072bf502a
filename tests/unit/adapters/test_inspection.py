"""The checks in a child process: the same answers, and no way to hurt the process that asks."""

import asyncio
import os
import signal

import pytest

from openmint.adapters import inspection
from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.facts import AdapterLimits
from openmint.adapters.inspection import InspectionFailed, Inspector, inspect_in_child
from openmint.errors import BadAdapter


async def test_the_child_answers_what_the_checks_answer(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    limits = AdapterLimits(max_rank=8, accepted_base_names=("hub/tiny",))
    assert await inspect_in_child(folder, base, limits) == check_adapter_folder(folder, base, limits)


async def test_a_refusal_comes_out_with_its_field(base, draft, tmp_path):
    draft.config["lora_alpha"] = -1
    with pytest.raises(BadAdapter, match="lora_alpha") as caught:
        await inspect_in_child(draft.write(tmp_path / "a"), base)
    assert caught.value.field == "lora_alpha"
    with pytest.raises(BadAdapter, match="can't be opened"):
        await inspect_in_child(tmp_path / "absent", base)


async def test_a_child_without_time_is_ended_and_says_nothing_about_the_adapter(base, draft, tmp_path):
    with pytest.raises(InspectionFailed, match="longer than"):
        await inspect_in_child(draft.write(tmp_path / "a"), base, timeout_s=0.01)


async def test_a_child_without_memory_is_a_failure_of_its_own(base, draft, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_MEMORY_BYTES", 30 << 20)
    with pytest.raises((InspectionFailed, BadAdapter)):
        await inspect_in_child(draft.write(tmp_path / "a"), base)


async def test_one_child_serves_many_and_a_bad_one_does_not_end_it(base, draft, draft_of, tmp_path):
    good = draft.write(tmp_path / "good")
    bad = draft_of(base)
    bad.config["r"] = 0
    bad.write(tmp_path / "bad")
    async with Inspector() as inspector:
        first = await inspector.inspect(good, base)
        child = inspector._child
        with pytest.raises(BadAdapter, match="r = 0"):
            await inspector.inspect(tmp_path / "bad", base)
        answers = await asyncio.gather(*(inspector.inspect(good, base) for _ in range(5)))
        assert answers == [first] * 5 and inspector._child is child
        child.kill()
        await child.wait()
        assert await inspector.inspect(good, base) == first
    assert inspector._child is None


async def test_a_child_is_replaced_after_enough_inspections(base, draft, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_INSPECTIONS", 2)
    folder = draft.write(tmp_path / "a")
    async with Inspector() as inspector:
        await inspector.inspect(folder, base)
        assert inspector._child is not None
        await inspector.inspect(folder, base)
        assert inspector._child is None
        await inspector.inspect(folder, base)


async def test_a_child_that_is_stopped_does_not_answer_for_the_next(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    async with Inspector(timeout_s=30) as inspector:
        await inspector.inspect(folder, base)
        inspector._child.send_signal(signal.SIGSTOP)
        inspector._timeout_s = 0.2
        with pytest.raises(InspectionFailed):
            await inspector.inspect(folder, base)
        inspector._timeout_s = 30
        assert (await inspector.inspect(folder, base)).rank == 4


async def test_too_much_time_on_the_processor_is_the_adapters_fault(base, draft_of, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_CPU_S", -1)
    with pytest.raises(BadAdapter, match="to be inspected"):
        await inspect_in_child(draft_of(base).write(tmp_path / "a"), base)


async def test_a_cancelled_inspection_leaves_no_child(base, draft, tmp_path):
    task = asyncio.create_task(inspect_in_child(draft.write(tmp_path / "a"), base))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    children = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    with open(children) as file:  # noqa: ASYNC230, PTH123
        for pid in file.read().split():
            with open(f"/proc/{pid}/cmdline") as other:  # noqa: ASYNC230, PTH123
                assert "inspection_child" not in other.read()


async def test_the_child_knows_no_secret_of_ours(monkeypatch):
    monkeypatch.setenv("OPENMINT_POSTGRES_DSN", "postgresql://user:secret@host/db")
    assert not any("OPENMINT" in name for name in inspection._environment())
