"""Which build and dtype each engine runs, as it told when it joined: a score holds for these."""

from collections import OrderedDict

import httpx
import structlog

from openmint.engines.residency import Placement
from openmint.events import EngineJoined

log = structlog.get_logger()

DTYPES = frozenset({"float32", "bfloat16", "float16"})
UNKNOWN_DTYPE = "dtype not announced"
MAX_BOOTS = 1000


class EngineBuilds:
    """Builds by boot. An engine that joined before anybody remembers is asked for its version alone."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._builds: OrderedDict[str, str] = OrderedDict()

    async def on_engine_joined(self, event: EngineJoined) -> None:
        """Remember a boot."""
        self._builds[str(event.boot_id)] = event.build
        while len(self._builds) > MAX_BOOTS:
            self._builds.popitem(last=False)

    async def build_and_dtype(self, placement: Placement) -> tuple[str, str]:
        """`vllm 0.32.0` and `bfloat16`."""
        known = self._builds.get(str(placement.boot_id), "")
        head, _, last = known.rpartition(" ")
        if last in DTYPES:
            return head, last
        return known or await self._ask(placement), UNKNOWN_DTYPE

    async def _ask(self, placement: Placement) -> str:
        try:
            answer = await self._http.get(f"{placement.url}/version")
            return f"vllm {answer.json()['version']}"
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            log.warning("engine.build_unknown", engine=placement.engine, error=repr(error)[:200])
            return "unknown build"
