"""What goes wrong on a simulated engine, on request."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class SimulatedFaults:
    """What goes wrong, by digest or for all; changed while it runs."""

    bad: set[str] = field(default_factory=set[str])
    refused: set[str] = field(default_factory=set[str])
    lied_about: set[str] = field(default_factory=set[str])
    deadly: set[str] = field(default_factory=set[str])
    poisonous: set[str] = field(default_factory=set[str])
    """Not finite when used: from then on the engine is suspect, as a real one."""
    store_is_away: bool = False
    hangs_until_s: float = 0.0
