"""Wiring of the trainer. Start it with `python -m openmint_trainer.app`; SIGTERM hands its jobs back and ends it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import structlog
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from openmint.adapters.signing import BadKey, SigningKey, keys_folder
from openmint.adapters.store import Store
from openmint.bases import BaseFacts, read_base_folder
from openmint.bus.broker import make_broker
from openmint.bus.connection import Bus, connect_bus
from openmint.bus.outbox import OutboxRelay
from openmint.catalog.bases import find_base
from openmint.catalog.database import Catalog
from openmint.catalog.outbox_rows import oldest_unsent_s
from openmint.endings import end
from openmint.engines.loads import watching_engines
from openmint.errors import Conflict, OpenmintError
from openmint.health import reporting_health
from openmint.logs import configure_logging
from openmint_trainer.executor import Executor
from openmint_trainer.handlers import subscribe
from openmint_trainer.loop import LoopSettings, TrainerLoop
from openmint_trainer.mixed_training import MixedTraining
from openmint_trainer.resident_base import load_base, use_one_thread
from openmint_trainer.rollouts.access import RolloutAccess
from openmint_trainer.rollouts.decoding import MixedDecoder
from openmint_trainer.rollouts.engines import EngineSamplers, EngineSettings
from openmint_trainer.rollouts.ephemeral import EphemeralRevisions
from openmint_trainer.rollouts.in_process import InProcessSamplers
from openmint_trainer.settings import TrainerSettings
from openmint_trainer.training_thread import TrainingThread

log = structlog.get_logger()

RELAY_GRACE_S = 2.0


async def catalog_answers(catalog: Catalog) -> bool:
    """Whether a trivial query comes back."""
    async with catalog.connection() as connection:
        return await connection.fetchval("select true") is True


async def relayed(catalog: Catalog) -> None:
    """Wait a moment until nothing is left in the outbox: nobody may be there to tell it after us."""
    with contextlib.suppress(OpenmintError, TimeoutError):
        async with asyncio.timeout(RELAY_GRACE_S), catalog.connection() as connection:
            while await oldest_unsent_s(connection) > 0:
                await asyncio.sleep(0.05)


async def serve(settings: TrainerSettings) -> None:
    """Run a trainer until SIGTERM or SIGINT.

    Raises: Conflict when the folder is not the base that the catalogue knows under its name.
    """
    facts = await asyncio.to_thread(read_base_folder, settings.base_folder)
    catalog = await Catalog.open(settings.postgres_dsn, application="openmint-trainer")
    bus = await connect_bus(settings, "trainer")
    try:
        async with catalog.connection() as connection:
            registered = await find_base(connection, facts.name)
        if registered.digest != facts.digest:
            raise Conflict(f"{settings.base_folder} is {facts.digest}, but base {facts.name} is {registered.digest}")
        device = settings.trainer_device
        base = await asyncio.to_thread(
            load_base,
            settings.base_folder,
            facts.name,
            facts.digest,
            settings.trainer_dtype,
            device,
            settings.trainer_recompute,
        )
        tokenizer = AutoTokenizer.from_pretrained(settings.base_folder, local_files_only=True)
        executor = Executor(base, settings.trainer_slots, settings.trainer_bank_bytes)
        training = MixedTraining(executor, settings.trainer_token_budget)
        thread = TrainingThread()
        wake = asyncio.Event()
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="openmint-trainer-"))
            access = await _open_rollouts(
                stack, settings, bus, facts, executor, training, thread, Path(folder), tokenizer.eos_token_id
            )
            owner = f"{socket.gethostname()}-{os.getpid()}"
            loop = TrainerLoop(
                LoopSettings(
                    base=facts.name,
                    owner=owner,
                    slots=settings.trainer_slots,
                    lease_s=settings.trainer_lease_s,
                    poll_s=settings.trainer_poll_s,
                    drain_s=settings.trainer_drain_s,
                    work_folder=Path(folder),
                ),
                catalog,
                Store.open(settings.store_url),
                bus,
                training,
                tokenizer,
                wake,
                thread,
                access,
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, loop.stop)
            broker = make_broker(settings, "trainer")
            subscribe(broker, facts.name, wake)
            await broker.start()
            relay = asyncio.create_task(OutboxRelay(catalog.pool, bus, "trainer").run())
            log.info("trainer.started", base=facts.name, dtype=str(base.dtype), slots=settings.trainer_slots)
            try:
                async with reporting_health({"catalog": lambda: catalog_answers(catalog)}):
                    await loop.run()
                await relayed(catalog)
            finally:
                await end(relay)
                await broker.stop()
            log.info("trainer.stopped", base=facts.name)
    finally:
        await bus.close()
        await catalog.close()


async def _open_rollouts(
    stack: AsyncExitStack,
    settings: TrainerSettings,
    bus: Bus,
    facts: BaseFacts,
    executor: Executor,
    training: MixedTraining,
    thread: TrainingThread,
    folder: Path,
    end_token: int | None,
) -> RolloutAccess:
    """The places at which policies are sampled, open until the stack closes."""
    in_process = InProcessSamplers(MixedDecoder(executor.base, end_token, training.budget_tokens), training, thread)
    stack.push_async_callback(in_process.close)
    in_flight, endpoints = settings.trainer_rollouts_in_flight, settings.trainer_reward_endpoints
    if settings.trainer_rollouts == "in_process":
        return RolloutAccess(in_process, max_in_flight=in_flight, endpoints=endpoints)
    try:
        key = SigningKey.load_or_create(settings.trainer_key_folder or keys_folder(settings.state_dir))
    except (BadKey, OSError) as error:
        log.warning("rollouts.without_engines", reason=f"no key signs ephemeral revisions: {error}")
        return RolloutAccess(in_process, max_in_flight=in_flight, endpoints=endpoints)
    http = await stack.enter_async_context(
        httpx.AsyncClient(
            headers={"authorization": f"Bearer {settings.engine_key}"},
            timeout=settings.trainer_rollout_request_timeout_s,
            trust_env=False,
        )
    )
    view, waiter = await stack.enter_async_context(watching_engines(bus, settings.engine_read_key))
    # What the base computes in: a coarser rounding would only widen the gap between trainer and engine.
    dtype = str(executor.base.dtype).removeprefix("torch.")
    revisions = EphemeralRevisions(Store.open(settings.store_url), key, facts, dtype)
    engines = EngineSamplers(
        EngineSettings(
            base=facts.name,
            pool=settings.trainer_rollout_pool,
            load_deadline_s=settings.trainer_rollout_load_deadline_s,
            requests_at_once=settings.trainer_rollout_requests,
        ),
        waiter,
        http,
        revisions,
        executor,
        training,
        thread,
        folder,
    )
    return RolloutAccess(
        in_process,
        engines,
        lambda: view.has_engine(facts.name, settings.trainer_rollout_pool),
        in_flight,
        endpoints,
    )


def main() -> None:
    """Command line."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("openmint_trainer: set OMP_NUM_THREADS=1 (more threads make small kernels wait for each other)")
    use_one_thread()
    settings = TrainerSettings().resolve()
    if not (settings.base_folder / "config.json").is_file():
        sys.exit(f"openmint_trainer: OPENMINT_BASE_FOLDER = {settings.base_folder} is no base model's folder")
    configure_logging("trainer", settings)
    disable_progress_bar()
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
