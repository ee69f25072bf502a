"""The worker extensions that engines in a race run with: ours as it is, and an empty one for stock, both with notes."""

from load.stack.worker_notes import start_notes
from openmint_engine_host.plugin.worker import WorkerExtension


class OurNotedWorker(WorkerExtension):
    """Ours, unchanged."""


class StockNotedWorker:
    """Adds no method."""


start_notes()
