"""What the plug-in asks of a vLLM version.

Objects of vLLM pass through as `object` (a `worker`, or `api`, the state of its web application): only the version
module looks inside them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from openmint_engine_host.layout import ModuleTable

Capability = Literal[
    "exact_residency",
    "prepared_attach",
    "real_removal",
    "batched_attach",
    "self_test",
    "probe",
    "cpu_lora_repair",
    "answer_watch",
    "cleanse",
]


@dataclass(frozen=True, slots=True)
class Load:
    """One prepared adapter to make resident."""

    name: str
    adapter_id: int
    path: str


@dataclass(frozen=True, slots=True)
class Residency:
    """What one worker holds, tier by tier."""

    cached: tuple[int, ...]
    """Adapter ids in host memory, least recently used first."""

    slots: tuple[int | None, ...]
    """Adapter id in each slot of the device."""

    capacity: int


class VersionModule(Protocol):
    """One minor version of vLLM."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this version can do on this platform."""
        ...

    def install(self) -> None:
        """Put the patches in place; run once in every vLLM process, before the model is built."""
        ...

    def repair_kernels(self) -> None:
        """Put the repair of the LoRA kernels in place and nothing else, for a vLLM that is none of openmint's."""
        ...

    def module_table(self, worker: object) -> ModuleTable:
        """The modules that take LoRA in this worker, as it fused and shaped them."""
        ...

    def attach(self, worker: object, load: Load) -> None:
        """Register a prepared file in host memory, and in a slot if one is free. Raises: ValueError with its cause."""
        ...

    def remove(self, worker: object, adapter_id: int) -> bool:
        """Free the slot and the memory of an adapter; True when it was there."""
        ...

    def residency(self, worker: object) -> Residency:
        """What this worker holds now."""
        ...

    def self_test(self, worker: object) -> str:
        """Empty when the LoRA kernels treat every row of a mixed batch right, else what they did wrong."""
        ...

    def register_name(self, api: object, load: Load) -> None:
        """Let the OpenAI routes of the API process know an adapter name."""
        ...

    def forget_name(self, api: object, name: str) -> None:
        """Take an adapter name and its lock out of the OpenAI routes."""
        ...

    async def call_worker(self, api: object, method: str, *arguments: object) -> object:
        """Run a method of the worker extension between two steps; the answer of the first worker."""
        ...

    async def probe(self, api: object, load: Load | None) -> float:
        """Logprob in nats of one token answered by an adapter, or by the base. Not finite when the answer is bad."""
        ...

    def watch_answers(self, note: Callable[[str, bool], None]) -> None:
        """Have `note(name, is_finite)` called for each token that is made, in the API process; the base is ''."""
        ...

    async def cleanse(self, api: object) -> None:
        """Zero the key-value cache and forget cached prefixes; nothing may be running."""
        ...

    def zero_cache(self, worker: object) -> None:
        """The worker's part of `cleanse`."""
        ...
