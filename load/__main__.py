"""`python -m load list` and `python -m load <scenario> [--quick] [--seed N] [--json FILE]`; `--help` names the rest."""

import argparse
import signal
import sys
from pathlib import Path

from load.report import ReportBuilder, render
from load.scenarios import SCENARIOS, Options


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every bound holds, 1 when one does not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m load", description="Measure openmint on this machine")
    parser.add_argument("scenario", choices=["list", *sorted(SCENARIOS)], help="list names the scenarios")
    parser.add_argument("--quick", action="store_true", help="answer within five minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep finished rows there, and go on from them")
    parser.add_argument("--only", metavar="PATTERN", help="run only rows whose name matches, such as '*/1.25x/ours/*'")
    given = parser.parse_args(arguments)
    if given.scenario == "list":
        for name, scenario in sorted(SCENARIOS.items()):
            print(f"{name:<16} {scenario.summary}")
        return 0
    # Whoever ends a run by its time limit must not leave engines behind: the same clean-up as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    builder = ReportBuilder(given.scenario, given.quick, given.seed)
    SCENARIOS[given.scenario].run(Options(given.quick, given.seed, given.keep, given.only), builder)
    report = builder.build()
    print(render(report), end="")
    if given.json is not None:
        given.json.write_text(report.model_dump_json(indent=1) + "\n")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
