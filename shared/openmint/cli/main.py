"""`openmint`: the commands put together, and what happens to their errors."""

import sys

import click
import typer

from openmint.cli import chat, data, dead, jobs, keys, policies, stack, train
from openmint.cli.output import EXIT_MISTAKE, errors_console, fail
from openmint.errors import OpenmintError

app = typer.Typer(
    name="openmint",
    help="The whole life of very many LoRA policies over a few resident base models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (stack, train, jobs, policies, chat):
    module.add_to(app)
app.add_typer(data.app, name="data")
app.add_typer(keys.app, name="keys")
app.add_typer(dead.app, name="dead")


def main() -> None:
    """Run a command: 0 done, 1 failed, 2 the caller must change something, 3 try again later."""
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
    except OpenmintError as error:
        code = fail(error, as_json="--json" in sys.argv)
    except click.ClickException as error:
        error.show()
        code = EXIT_MISTAKE
    except (click.Abort, KeyboardInterrupt):
        errors_console.print("interrupted")
        code = 130
    except BrokenPipeError:
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
