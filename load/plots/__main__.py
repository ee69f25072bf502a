"""`python -m load.plots FILE… -o OUT.png`."""

import argparse
import sys
from pathlib import Path

from load.plots.events import read_recording


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when a file can't be read or shows nothing."""
    parser = argparse.ArgumentParser(prog="python -m load.plots", description="Draw a run from its recorded events")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="events as JSON lines")
    parser.add_argument("-o", "--out", type=Path, required=True, help="picture to write: .png, .svg or .pdf")
    given = parser.parse_args(arguments)
    from load.plots.page import draw_page

    try:
        draw_page(read_recording(given.files), given.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
