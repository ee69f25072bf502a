"""Runs a command that dies with the process that starts it: `python -m openmint_engine_host.child <pid> <command>`.

A process between, since Python code between fork and exec is not safe in a host that has threads.
"""

import os
import sys

from openmint_engine_host.plugin import die_with_parent


def main() -> None:
    """Tie this process to its parent, whose pid is the first argument, and become the command."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone already")
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
