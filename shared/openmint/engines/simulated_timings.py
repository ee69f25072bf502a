"""How long a simulated engine takes for what it does. `load/fleet/fit.py` makes these from recorded runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SimulatedTimings:
    """Seconds. The defaults are those of a 135M base with adapters of 5 MB on two CPU cores."""

    stage_s: float = 0.03
    gap_s: float = 0.05
    """Waiting for the end of the running step; once per batch."""
    attach_s: float = 0.006
    remove_s: float = 0.005
    look_s: float = 0.001
    probe_s: float = 0.02
    restart_s: float = 2.0
    parallel_stages: int = 2
