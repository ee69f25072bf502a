"""The limits that engines of both sides have in a race: only the way in differs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine may hold and run."""

    slots: int = 8
    """Adapters in one batch."""

    capacity: int = 32
    """Adapters in host memory, slots included."""

    max_running: int = 16
    """Sequences in one step."""

    max_rank: int = 8
    max_model_len: int = 1024
    dtype: str = "float32"
    kv_cache_gib: int = 1

    def as_settings(self) -> dict[str, str]:
        """The settings of an engine host."""
        return {
            "OPENMINT_MAX_LORAS": str(self.slots),
            "OPENMINT_MAX_CPU_LORAS": str(self.capacity),
            "OPENMINT_MAX_NUM_SEQS": str(self.max_running),
            "OPENMINT_MAX_LORA_RANK": str(self.max_rank),
            "OPENMINT_MAX_MODEL_LEN": str(self.max_model_len),
            "OPENMINT_KV_CACHE_GIB": str(self.kv_cache_gib),
        }

    def as_arguments(self, targets: Sequence[str]) -> list[str]:
        """The arguments of a stock vLLM server that adapts the same modules."""
        return [
            "--dtype", self.dtype, "--max-model-len", str(self.max_model_len),
            "--max-num-seqs", str(self.max_running), "--enable-lora", "--max-loras", str(self.slots),
            "--max-cpu-loras", str(self.capacity), "--max-lora-rank", str(self.max_rank),
            "--lora-target-modules", *targets, "--disable-uvicorn-access-log", "--enforce-eager",
        ]  # fmt: skip
