"""A whole stack on one machine: `openmint up` starts it, one supervisor keeps it, `openmint down` ends it.

The supervisor is a process of its own. It starts NATS and Postgres from wheels (unless their URLs are set), provisions
them, starts every service and engine host, restarts what dies, and writes what it sees to `<state_dir>/stack.json`.
"""

from openmint.embedded.process import free_port
from openmint.local_stack.plan import EngineSpec, StackPlan, plan_from_environment, secret_file
from openmint.local_stack.status import PartStatus, StackDown, StackStatus, down, status, up

__all__ = [
    "EngineSpec",
    "PartStatus",
    "StackDown",
    "StackPlan",
    "StackStatus",
    "down",
    "free_port",
    "plan_from_environment",
    "secret_file",
    "status",
    "up",
]
