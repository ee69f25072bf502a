from uuid import uuid4

import httpx
import pytest

from openmint.engines.residency import Placement
from openmint.events import EngineJoined
from openmint_evaluator.engine_builds import UNKNOWN_DTYPE, EngineBuilds


def joined(placement: Placement, build: str) -> EngineJoined:
    return EngineJoined(
        base="tiny", base_digest="sha256:" + "0" * 64, engine=placement.engine, boot_id=placement.boot_id,
        pools=["serve"], url=placement.url, control_url="", build=build,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("vllm 0.32.0 bfloat16", ("vllm 0.32.0", "bfloat16")),
        ("something else", ("something else", UNKNOWN_DTYPE)),
    ],
)
async def test_build_is_what_the_engine_told_when_it_joined(told: str, expected: tuple[str, str]) -> None:
    placement = Placement("serve-1", "http://127.0.0.1:9", "p@1#1", uuid4())
    async with httpx.AsyncClient() as http:
        builds = EngineBuilds(http)
        await builds.on_engine_joined(joined(placement, told))
        assert await builds.build_and_dtype(placement) == expected


async def test_engine_that_nobody_heard_of_and_that_does_not_answer_is_named_unknown() -> None:
    async with httpx.AsyncClient() as http:
        found = await EngineBuilds(http).build_and_dtype(Placement("serve-1", "http://127.0.0.1:9", "p@1#1", uuid4()))
    assert found == ("unknown build", UNKNOWN_DTYPE)
