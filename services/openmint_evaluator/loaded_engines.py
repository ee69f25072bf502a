"""Leases on real engines: the scheduler is asked to load, and holds what is leased."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import structlog

from openmint.catalog.rows import Base, Revision
from openmint.clock import Clock
from openmint.engines.loads import LoadOrder, LoadWaiter
from openmint.engines.residency import Placement
from openmint.errors import EngineFailed, LoadFailed, TryAgain
from openmint_evaluator.engine_access import EngineLease
from openmint_evaluator.engine_builds import EngineBuilds
from openmint_evaluator.report import ServingPath
from openmint_evaluator.served_model import BASE_REVISION, ServedModel

log = structlog.get_logger()

RETRY_S = 2.0


class LoadedEngines:
    """`EngineAccess` by cold loads of class evaluation.

    An engine that is restarting comes back within minutes, so a load is asked for again for `patience_s` before the
    evaluation is given up for this try.
    """

    def __init__(
        self,
        waiter: LoadWaiter,
        builds: EngineBuilds,
        http: httpx.AsyncClient,
        load_deadline_s: float,
        patience_s: float,
        clock: Clock,
    ) -> None:
        self._waiter = waiter
        self._builds = builds
        self._http = http
        self._load_deadline_s = load_deadline_s
        self._patience_s = patience_s
        self._clock = clock

    @asynccontextmanager
    async def lease(self, revision: Revision, base: Base, pool: str) -> AsyncGenerator[EngineLease]:
        """Raises: NoEngine, LoadTimeout, Overloaded, BusUnavailable, EngineFailed; LoadFailed if no retry can help."""
        assert revision.digest is not None and revision.rank is not None
        order = LoadOrder(
            base=base.name,
            tenant=revision.tenant,
            policy=revision.policy,
            revision_id=revision.revision_id,
            digest=revision.digest,
            rank=revision.rank,
            adapter_bytes=revision.adapter_bytes or 0,
            pool=pool,
            load_class="evaluation",
        )
        async with AsyncExitStack() as stack:
            placement = await self._enter(stack, order)
            build, dtype = await self._builds.build_and_dtype(placement)
            boot = str(placement.boot_id)
            yield EngineLease(
                adapter=self._model(placement, placement.adapter_name, revision.digest, revision.tenant),
                base=self._model(placement, base.name, BASE_REVISION, revision.tenant),
                path=ServingPath(pool=pool, engine=placement.engine, boot_id=boot, build=build, dtype=dtype),
            )

    async def _enter(self, stack: AsyncExitStack, order: LoadOrder) -> Placement:
        ends_s = self._clock.monotonic_s() + self._patience_s
        while True:
            try:
                return await stack.enter_async_context(self._waiter.lease(order, self._load_deadline_s))
            except TryAgain as error:
                if self._clock.monotonic_s() > ends_s:
                    raise
                log.info("load.asked_again", pool=order.pool, revision=order.digest, error=error.detail)
                await self._clock.sleep(error.retry_after_s or RETRY_S)
            except LoadFailed as error:
                if error.retry_after_s is None:
                    raise
                # Trouble of engines or hosts, not a verdict on the files: this must cost a try and never a rejection.
                raise EngineFailed(error.detail, retry_after_s=error.retry_after_s) from error

    def _model(self, placement: Placement, model: str, revision: str, tenant: str) -> ServedModel:
        return ServedModel(
            http=self._http,
            url=placement.url.rstrip("/"),
            model=model,
            revision=revision,
            boot_id=str(placement.boot_id),
            tenant=tenant,
        )
