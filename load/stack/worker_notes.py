# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
"""Notes of each load and each slot change inside an engine's worker, so that both sides are counted alike.

`start_notes` is called by importing one of the worker extensions of this package, which vLLM does before it builds the
model.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from load.stack.counters import EngineCounters
from openmint_engine_host.plugin.front_settings import FILE_VARIABLE

NOTES_VARIABLE = "LOAD_NOTES"
"""Names the file that gets one JSON line per load and per slot change."""

NOTES_FILE = "worker.notes"


def start_notes() -> None:
    """Note loads from PEFT folders and slot changes; of an engine of ours, beside its plug-in's settings."""
    given, front_file = os.environ.get(NOTES_VARIABLE), os.environ.get(FILE_VARIABLE)
    if given:
        path = Path(given)
    elif front_file:
        path = Path(front_file).with_name(NOTES_FILE)
    else:
        return
    from vllm.lora import model_manager, worker_manager

    notes = path.open("a", buffering=1)
    manager: Any = model_manager.LRUCacheLoRAModelManager
    worker: Any = worker_manager.LRUCacheWorkerLoRAManager
    stock_activate, stock_load = manager.activate_adapter, worker._load_adapter

    def activate_adapter(self: Any, lora_id: int) -> bool:
        began_s = time.perf_counter()
        is_new = bool(stock_activate(self, lora_id))
        if is_new:
            write("slot", lora_id, began_s)
        return is_new

    def load_adapter(self: Any, lora_request: Any) -> Any:
        began_s = time.perf_counter()
        loaded = stock_load(self, lora_request)
        write("load", lora_request.lora_int_id, began_s)
        return loaded

    def write(event: str, adapter_id: int, began_s: float) -> None:
        took_ms = (time.perf_counter() - began_s) * 1000
        line = {"event": event, "adapter_id": adapter_id, "at_s": time.time(), "took_ms": round(took_ms, 3)}
        notes.write(json.dumps(line) + "\n")

    manager.activate_adapter = activate_adapter
    worker._load_adapter = load_adapter


def count_notes(path: Path) -> EngineCounters:
    """What a worker has noted."""
    if not path.exists():
        return EngineCounters()
    lines = path.read_text().splitlines()
    return EngineCounters(
        attaches=sum('"event": "load"' in line for line in lines),
        slot_swaps=sum('"event": "slot"' in line for line in lines),
    )
