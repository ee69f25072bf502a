"""What the gateway does with a training request from the bus: the same as with one over HTTP, and an answer by fact."""

import structlog
from faststream.nats import NatsBroker

from openmint.bus.broker import command_subscriber
from openmint.bus.messages import RawMessage, Received
from openmint.errors import CallerMistake
from openmint.events import TrainRequested
from openmint_gateway.intake import SERVICE, Intake, TrainMessage
from openmint_gateway.metrics import GatewayMetrics

log = structlog.get_logger()


def subscribe(broker: NatsBroker, intake: Intake, metrics: GatewayMetrics) -> None:
    """Register the only consumer of `train.requested`."""

    async def refuse(raw: RawMessage, mistake: CallerMistake) -> None:
        await intake.refuse(TrainMessage(raw.tenant, raw.token, raw.event_id), mistake, raw.data)
        metrics.taken_in("refused")
        log.info("job.refused", tenant=raw.tenant, code=mistake.code, field=mistake.field, detail=mistake.detail)

    @command_subscriber(broker, SERVICE, TrainRequested, refuse=refuse)
    async def on_train_requested(received: Received[TrainRequested]) -> None:
        message = TrainMessage(received.tenant, received.token, received.event_id)
        job, is_new = await intake.accept(message, received.event)
        metrics.taken_in("accepted" if is_new else "known")
        log.info("job.accepted", tenant=job.tenant, job_id=str(job.job_id), policy=job.policy, is_new=is_new)
