"""The trainer's settings, prefix OPENMINT_."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from openmint.events.serving import SERVE_POOL
from openmint.settings import CommonSettings
from openmint_trainer.resident_base import DtypeName
from openmint_trainer.rewards import RewardEndpoint


class TrainerSettings(CommonSettings):
    """Read once, in app.py."""

    base_folder: Path = Path()
    """Folder of the one base model that this process keeps resident (Hugging Face layout). Must be set."""

    trainer_dtype: DtypeName = "auto"
    """What the base is kept and computed in; adapters' masters, gradients and moments are always float32."""

    trainer_device: str = "cpu"

    trainer_slots: int = 8
    """Policies in training at once. A slot of rank 8 on a 135M base takes 40 MB."""

    trainer_bank_bytes: int = 4 << 30
    """For all adapters in training together; a job that finds no room is left to another trainer."""

    trainer_token_budget: int = 2048
    """Tokens per micro-batch, and of the longest row: this sets peak memory (at 135M, 2 MB per token in float32)."""

    trainer_recompute: bool = False
    """Keep only the inputs of decoder layers for the way back and make the rest again: a third more computing, and room
    for a token budget several times as large. The results are the same to the bit."""

    trainer_lease_s: float = 20.0
    """How long a job stays ours without a heartbeat; a crash costs this much before another process takes over."""

    trainer_poll_s: float = 2.0
    """How often due jobs are looked for when nothing on the bus says that there are any."""

    trainer_drain_s: float = 8.0
    """On SIGTERM: how long the steps under way may take, and then once more for their checkpoints to be brought out;
    together below the 20 s after which a supervisor kills."""

    engine_key: str = Field(default="", repr=False, description="bearer key of the engines' inference port")
    engine_read_key: str = Field(default="", repr=False, description="bearer key for lists of residents")

    trainer_rollouts: Literal["auto", "in_process"] = "auto"
    """auto: on engines of `trainer_rollout_pool` where there are any when a job is claimed, else in this process."""

    trainer_rollout_pool: str = SERVE_POOL

    trainer_rollouts_in_flight: int = 16
    """Jobs' steps that are being sampled at once."""

    trainer_rollout_requests: int = 32
    """Requests to engines at once, of all jobs; each asks for one group."""

    trainer_rollout_load_deadline_s: float = 120.0
    trainer_rollout_request_timeout_s: float = 600.0

    trainer_key_folder: Path | None = None
    """Where the key lies that signs ephemeral revisions; empty: <state_dir>/keys, as the exporter's."""

    trainer_reward_endpoints: dict[str, RewardEndpoint] = Field(default_factory=dict, repr=False)
    """HTTP rewards that jobs may name, as JSON {name: {url, key}}. Jobs never give a URL."""
