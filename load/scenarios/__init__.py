"""The registry of scenarios. A scenario imports what it needs when it runs, so that listing them is instant."""

from load.scenarios.contract import Options, Scenario
from load.scenarios.gate_errors import GATE_ERRORS

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (GATE_ERRORS,)}

__all__ = ["SCENARIOS", "Options", "Scenario"]
