"""`openmint`: the commands put together, and what happens to their errors."""

import logging
import sys

import structlog
import typer

from openmint.cli import chat, data, dead, engines, jobs, keys, loads, policies, stack, traces, train, trials
from openmint.cli.output import fail
from openmint.errors import OpenmintError

app = typer.Typer(
    name="openmint",
    help="The whole life of very many LoRA policies over a few resident base models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (stack, train, jobs, policies, chat, engines, loads, traces, trials):
    module.add_to(app)
app.add_typer(data.app, name="data")
app.add_typer(keys.app, name="keys")
app.add_typer(dead.app, name="dead")


def main() -> None:
    """Run a command: 0 done, 1 failed, 2 the caller must change something, 3 try again later."""
    # Standard output is for answers; what the library logs on the way is only of interest when it is serious.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        app()
    except OpenmintError as error:
        sys.exit(fail(error, as_json="--json" in sys.argv))


if __name__ == "__main__":
    main()
