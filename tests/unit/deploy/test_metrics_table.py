"""deploy/metrics.md names every metric of the services, and none that does not exist."""

import re
from pathlib import Path

from openmint_engine_host.metrics import GAUGES

REPOSITORY = Path(__file__).parents[3]


def test_the_table_and_the_code_name_the_same_metrics():
    sources = (REPOSITORY / "services").glob("*/metrics.py")
    made = {name for source in sources for name in re.findall(r'"(openmint_[a-z_]+[a-z])"', source.read_text())}
    made |= {f"openmint_engine_{name}" for name in GAUGES}
    rows = [line for line in (REPOSITORY / "deploy" / "metrics.md").read_text().splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(openmint_[a-z_]+)`", row.split("|")[1])}
    assert told == made
