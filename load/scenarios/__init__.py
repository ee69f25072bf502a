"""The registry of scenarios. A scenario imports what it needs when it runs, so that listing them is instant."""

from load.scenarios.cold_wave import COLD_WAVE
from load.scenarios.contract import Options, Scenario
from load.scenarios.decode_guard import DECODE_GUARD
from load.scenarios.fair_line import FAIR_LINE
from load.scenarios.faults import FAULTS
from load.scenarios.fleet import FLEET
from load.scenarios.gate_errors import GATE_ERRORS
from load.scenarios.gateway_cost import GATEWAY_COST
from load.scenarios.handoff import HANDOFF
from load.scenarios.many_policies import MANY_POLICIES
from load.scenarios.one_missing import ONE_MISSING
from load.scenarios.overload import OVERLOAD_SCENARIO
from load.scenarios.paper_waves import PAPER_WAVES
from load.scenarios.prediction import PREDICTION
from load.scenarios.sweep import SWEEP

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        COLD_WAVE,
        DECODE_GUARD,
        FAIR_LINE,
        FAULTS,
        FLEET,
        GATE_ERRORS,
        GATEWAY_COST,
        HANDOFF,
        MANY_POLICIES,
        ONE_MISSING,
        OVERLOAD_SCENARIO,
        PAPER_WAVES,
        PREDICTION,
        SWEEP,
    )
}

__all__ = ["SCENARIOS", "Options", "Scenario"]
