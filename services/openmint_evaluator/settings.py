"""The evaluator's settings, prefix OPENMINT_."""

from pydantic import Field

from openmint.events.serving import GATE_POOL, SERVE_POOL
from openmint.settings import CommonSettings
from openmint_evaluator.probes import PROBE_TOKENS


class EvaluatorSettings(CommonSettings):
    """Read once, in app.py."""

    engine_key: str = Field(default="", repr=False, description="bearer key of the engines' inference port")
    engine_read_key: str = Field(default="", repr=False, description="bearer key for lists of residents")

    evaluator_gate_pool: str = GATE_POOL
    """Pool of engines in fp32; empty where fp32 does not fit, then the serving check alone decides and says so."""

    evaluator_serve_pool: str = SERVE_POOL

    evaluator_lease_s: float = 30.0
    """How long an evaluation stays ours without a heartbeat; a crash costs this much."""

    evaluator_poll_s: float = 5.0
    """How often due evaluations are looked for when nothing on the bus says that there are any."""

    evaluator_retry_s: float = 10.0
    """Before a revision is tried again after trouble with engines, store or reference; doubles with each try."""

    evaluator_max_tries: int = 6
    """Five minutes of pauses, and half an hour without any engine, until a revision is rejected for it."""

    evaluator_concurrency: int = 8
    """Requests at once to one engine: more than one, so that rows of base and adapter share its batches, and few
    enough to leave room for traffic."""

    evaluator_load_deadline_s: float = 120.0
    evaluator_engine_patience_s: float = 300.0
    """Three starts of an engine on a slow machine."""

    evaluator_request_timeout_s: float = 120.0
    evaluator_probe_tokens: int = PROBE_TOKENS
    evaluator_reference_timeout_s: float = 600.0
    """One call of the reference child: 512 tokens through a 135M base take 3 s on one core, a 7B one 150 s."""

    evaluator_reference_idle_s: float = 300.0
    """After which the reference child is ended and its memory given back."""
