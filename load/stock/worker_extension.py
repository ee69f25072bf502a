# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
"""Notes of each load and each slot change in a stock server's worker, so that both sides are counted alike.

Named by `--worker-extension-cls`; importing it, which vLLM's worker does before it builds the model, starts the notes.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

NOTES_VARIABLE = "LOAD_STOCK_NOTES"
"""Names the file that gets one JSON line per load and per slot change."""


class StockExtension:
    """Adds no method to the worker."""


def _note_what_happens(path: str) -> None:
    from vllm.lora import model_manager, worker_manager

    notes = Path(path).open("a", buffering=1)  # noqa: SIM115 - open as long as the worker lives
    manager: Any = model_manager.LRUCacheLoRAModelManager
    worker: Any = worker_manager.LRUCacheWorkerLoRAManager
    stock_activate, stock_load = manager.activate_adapter, worker._load_adapter

    def activate_adapter(self: Any, lora_id: int) -> bool:
        began_s = time.perf_counter()
        is_new = stock_activate(self, lora_id)
        if is_new:
            _write("slot", lora_id, began_s)
        return bool(is_new)

    def load_adapter(self: Any, lora_request: Any) -> Any:
        began_s = time.perf_counter()
        loaded = stock_load(self, lora_request)
        _write("load", lora_request.lora_int_id, began_s)
        return loaded

    def _write(event: str, adapter_id: int, began_s: float) -> None:
        took_ms = (time.perf_counter() - began_s) * 1000
        line = {"event": event, "adapter_id": adapter_id, "at_s": time.time(), "took_ms": round(took_ms, 3)}
        notes.write(json.dumps(line) + "\n")

    manager.activate_adapter = activate_adapter
    worker._load_adapter = load_adapter


if os.environ.get(NOTES_VARIABLE):
    _note_what_happens(os.environ[NOTES_VARIABLE])
