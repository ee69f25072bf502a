"""Settings of an engine host, read once from `OPENMINT_*` in `app.py`."""

import secrets
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from openmint.identifiers import check_name
from openmint.settings import CommonSettings, Part


class EngineHostSettings(CommonSettings):
    """One engine on one machine. Several hosts share a machine when their engine names differ."""

    engine_name: str = "engine"
    base_folder: Path
    base_name: str = Field(default="", description="Name of the base; empty: the folder's name")
    pools: str = Field(default="serve", description="Pools this engine serves, with commas between them")
    dtype: str = "bfloat16"

    host: str = Field(default="127.0.0.1", description="Address that both ports listen on")
    advertise_host: str = Field(default="", description="Address that others reach this machine by; empty: `host`")
    port: int = Field(default=0, description="Port of the engine; 0: a free one, chosen anew for each boot")
    control_port: int = Field(default=0, description="Port of this host; 0: a free one")

    engine_key: str = Field(default="", repr=False, description="Key for inference; empty: made up, known to no one")
    engine_control_key: str = Field(default="", repr=False, description="Key of the scheduler alone")
    engine_read_key: str = Field(default="", repr=False, description="Key for reading the resident list")

    max_loras: int = Field(default=8, ge=1, description="Slots: adapters in one batch")
    max_cpu_loras: int = Field(default=32, ge=1, description="Capacity: adapters in host memory, slots included")
    max_lora_rank: int = Field(default=16, ge=1, description="Each slot is padded to this rank: keep it what is needed")
    max_num_seqs: int = Field(default=16, ge=1)
    max_model_len: int = Field(default=2048, ge=16)
    kv_cache_gib: int = Field(default=1, ge=1, description="On CPU; vLLM takes whole GiB only")
    core: str = Field(default="", description="CPU cores of the model, such as 0 or 0-3; empty: vLLM's choice")
    vllm_arguments: str = Field(default="", description="More arguments for vLLM, such as --no-enforce-eager on a GPU")
    margin: int = Field(default=2, ge=0, description="Sequences admitted beyond max_num_seqs")
    tenant_share: float = Field(default=0.75, gt=0, le=1, description="Part of the engine that one tenant may take")

    spool_dir: Path | None = Field(default=None, description="Prepared adapters and run files; empty: state_dir/spool")
    spool_bytes: int = Field(default=2 << 30, description="Prepared adapters beyond this are dropped, oldest use first")
    staging_concurrency: int = Field(default=2, ge=1, description="Fetch and check this many adapters at once")

    start_timeout_s: float = Field(default=600.0, description="A very busy machine needs up to 180 s")
    hang_after_s: float = Field(default=60.0, description="Killed when silent so long; a CPU prefill takes up to 20 s")
    drain_s: float = Field(default=10.0, description="On a stop, requests in flight get so long to finish")
    metrics_port: int = Field(default=0, ge=0, description="Port of the Prometheus endpoint; 0: none")
    announce: bool = Field(default=True, description="False: run without the bus (an engine by itself)")

    @model_validator(mode="after")
    def _slots_within_capacity(self) -> Self:
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"max_cpu_loras {self.max_cpu_loras} is below max_loras {self.max_loras}")
        return self

    @property
    def parts_needed(self) -> tuple[Part, ...]:
        """An engine host needs no catalogue, and without announcements no bus either."""
        return ("nats",) if self.announce else ()

    @cached_property
    def base(self) -> str:
        """The base's name. Raises: BadName."""
        return check_name(self.base_name or self.base_folder.resolve().name, "base model")

    @cached_property
    def pool_names(self) -> tuple[str, ...]:
        """The pools. Raises: BadName."""
        return tuple(check_name(part.strip(), "pool") for part in self.pools.split(",") if part.strip())

    @cached_property
    def run_dir(self) -> Path:
        """Where this engine's files are."""
        return ((self.spool_dir or self.state_dir / "spool") / check_name(self.engine_name, "engine")).resolve()

    @cached_property
    def inference_key(self) -> str:
        """`engine_key`, or one that nobody knows: an engine is never open."""
        return self.engine_key or secrets.token_urlsafe(32)

    def advertised(self, port: int) -> str:
        """The URL by which others reach a port of this machine."""
        return f"http://{self.advertise_host or self.host}:{port}"
