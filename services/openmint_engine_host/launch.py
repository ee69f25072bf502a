"""How stock vLLM is started: arguments, environment, the plug-in's settings file. Pure but for that file."""

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openmint.bases import targets_of
from openmint_engine_host.plugin.front_settings import FILE_VARIABLE, FrontSettings
from openmint_engine_host.settings import EngineHostSettings

EXTENSION = "openmint_engine_host.plugin.worker.WorkerExtension"
MIDDLEWARE = "openmint_engine_host.plugin.front.EngineFront"


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of vLLM."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    port: int


def engine_targets(modules: Mapping[str, tuple[int, int]]) -> list[str]:
    """What vLLM calls the modules of a base that take LoRA: last parts of their paths, and its own for fused experts.

    Without the latter vLLM leaves the experts unwrapped and drops their weights without a word.
    """
    fused = ["experts"] if any(".experts." in module for module in modules) else []
    return [*targets_of(modules), *fused]


def plan_launch(settings: EngineHostSettings, targets: list[str], front: FrontSettings, front_file: Path) -> Launch:
    """Write the plug-in's settings and say how to start vLLM with it."""
    front.write(front_file)
    port = settings.port or free_port(settings.host)
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    arguments += ["--model", str(settings.base_folder), "--served-model-name", settings.base]
    arguments += ["--host", settings.host, "--port", str(port), "--dtype", settings.dtype]
    arguments += ["--max-model-len", str(settings.max_model_len), "--max-num-seqs", str(settings.max_num_seqs)]
    arguments += ["--enable-lora", "--max-loras", str(settings.max_loras)]
    arguments += ["--max-cpu-loras", str(settings.max_cpu_loras), "--max-lora-rank", str(settings.max_lora_rank)]
    # Never lm_head: with LoRA on it, two concurrent requests for prompt logprobs kill an engine (vLLM 0.32).
    arguments += ["--lora-target-modules", *targets]
    arguments += ["--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE]
    arguments += ["--disable-uvicorn-access-log", "--enforce-eager", *shlex.split(settings.vllm_arguments)]
    return Launch(tuple(arguments), _environment(settings, front_file), port)


def _environment(settings: EngineHostSettings, front_file: Path) -> dict[str, str]:
    """This process's environment without our own settings: vLLM needs no password of the bus or the catalogue."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OPENMINT_") or name == "OPENMINT_ALLOW_UNKNOWN_VLLM"
    }
    kept |= {
        "OPENMINT_ENGINE": "1",
        FILE_VARIABLE: str(front_file),
        "VLLM_PLUGINS": "openmint",  # no resolver plug-in may map a model name to some folder
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # Even with --enforce-eager vLLM compiles a few small functions, which takes a C++ compiler that images lack.
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_LOG_STATS_INTERVAL": "3600",
        # A bad adapter shows in its logits before anywhere else; the plug-in's count costs 0.1 ms at 16 rows.
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
    }
    if settings.core:
        kept["VLLM_CPU_OMP_THREADS_BIND"] = settings.core
    return kept


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
