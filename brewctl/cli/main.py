"""The command line: the tree of commands, and how each one ends."""

import os
import sys
from typing import Annotated

import typer

from brewctl import __version__
from brewctl.cli import counts, demo, orders, output, roles, sandbox, setup
from brewctl.errors import BrewError, DrainTimeoutError, ExitCode

app = typer.Typer(
    name="brewctl",
    help="Brew orders: a transactional outbox, Kafka and idempotent consumers, on real servers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: [bold]brewctl demo[/bold]",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brewctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Debug logs, and tracebacks of errors.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Brew orders: a transactional outbox, Kafka and idempotent consumers, on real servers."""
    output.verbose = verbose


for module in (demo, sandbox, setup, roles, orders, counts):
    module.register(app)


def main() -> None:
    """Run a command; every failure becomes one line on stderr and an exit code."""
    try:
        code = app(standalone_mode=False, prog_name="brewctl")
        if code == ExitCode.INTERRUPTED:
            code = _report("interrupted", "", code)
    except typer.TyperException as error:
        code = _report_misuse(error)
    except DrainTimeoutError as error:
        _report(error.message, error.hint, error.exit_code)
        sys.stdout.flush()
        os._exit(error.exit_code)  # its threads would keep the process
    except BrewError as error:
        if output.verbose:
            raise
        code = _report(error.message, error.hint, error.exit_code)
    except typer.Abort:
        code = _report("not done", "", ExitCode.FAILED)
    except KeyboardInterrupt:
        code = _report("interrupted", "", ExitCode.INTERRUPTED)
    except Exception as error:
        if output.verbose:
            raise
        hint = "run it again as `brewctl -v …` and report what it says"
        code = _report(f"unexpected {type(error).__name__}: {error}", hint, ExitCode.FAILED)
    sys.exit(code)


def _report_misuse(error: typer.TyperException) -> ExitCode:
    asked = context.command_path if (context := getattr(error, "ctx", None)) else "brewctl"
    message = error.format_message()
    if not message:  # `brewctl serve` alone has printed its help
        return ExitCode.USAGE
    return _report(message.rstrip(".!?"), f"see `{asked} --help`", ExitCode.USAGE)


def _report(message: str, hint: str, code: ExitCode) -> ExitCode:
    line = message[:1].lower() + message[1:]
    print(f"brewctl: {line}: {hint}" if hint else f"brewctl: {line}", file=sys.stderr, flush=True)
    return code
