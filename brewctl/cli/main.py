"""The command line: the tree of commands, and their exit codes."""

import errno
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
import typer.core
import typer.main

from brewctl import __version__, stdout
from brewctl.cli import environment, output
from brewctl.errors import BrewError, DrainTimeoutError, ExitCode, ModuleError

# These choose between a library's implementations. If set, they are meant for other programs: ignored here.
_ENGINES = ("GRPC_POLL_STRATEGY", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "PSYCOPG_IMPL")
# The panels of commands in the help.
_PANELS = {
    "See it": ("demo", "top", "counts", "trace", "groups", "metrics", "doctor"),
    "Servers on this machine": ("up", "down", "status", "env"),
    "Roles": ("start", "stop", "logs", "serve", "publish", "consume", "create-order", "cancel-order"),
    "Tables and topics": ("db", "topic", "outbox", "dlq"),
    "Prove and measure": ("verify", "chaos", "load", "bench"),
}
COMMANDS = {name: panel for panel, names in _PANELS.items() for name in names}
# Modules of commands that are not named like the command.
_MODULES = {
    **dict.fromkeys(("start", "stop", "logs"), "background"),
    **dict.fromkeys(("create-order", "cancel-order"), "orders"),
    **dict.fromkeys(("up", "down", "status", "env"), "sandbox"),
    "publish": "serve",
    "topic": "setup",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brewctl {__version__}")
        raise typer.Exit


def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Debug logs, and tracebacks of errors.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Brew orders: a transactional outbox, Kafka and idempotent consumers, on real servers."""
    # gRPC's C core would log errors that we report ourselves.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    output.verbose = verbose


def make_app(names: Iterable[str]) -> typer.Typer:
    """Return the program with these commands, and the other commands of their modules."""
    app = typer.Typer(
        name="brewctl",
        help="Brew orders: a transactional outbox, Kafka and idempotent consumers, on real servers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Start with: [bold]brewctl demo[/bold]",
    )
    app.callback()(root)
    for module in dict.fromkeys(_MODULES.get(name, name) for name in names):
        importlib.import_module(f"brewctl.cli.{module}").register(app)
    return app


def root_command(words: Sequence[str] = ()) -> typer.core.TyperGroup:
    """Return the tree of commands.

    If `words` call a command, the tree may lack the others: importing all takes a quarter of the start's time.
    """
    first = next((word for word in words if word not in {"-v", "--verbose"}), "")
    names: Iterable[str] = COMMANDS
    if first in COMMANDS:
        names = [first]
    elif first == "--version":
        names = []
    root = typer.main.get_command(make_app(names))
    assert isinstance(root, typer.core.TyperGroup)
    environment.complete(root)
    root.commands = {name: root.commands[name] for name in COMMANDS if name in root.commands}
    for name, command in root.commands.items():
        assert isinstance(command, environment.Command)
        command.rich_help_panel = COMMANDS[name]
    return root


def main() -> None:
    """Run the command that the process was started with, and exit."""
    # Imported objects stay alive: with Python's default threshold, collecting garbage takes a tenth of a start's CPU.
    gc.set_threshold(10_000)
    stdout.prepare()
    for name in _ENGINES:
        os.environ.pop(name, None)
    # A closing terminal (SIGHUP) and `timeout` (SIGTERM) must clean up as Ctrl-C does. A shell starts background
    # jobs with SIGINT ignored; a SIGINT that is sent to one is meant to end it. `nohup` keeps SIGHUP ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; every failure becomes one line on stderr."""
    try:
        code: int = root_command(arguments)([*arguments], standalone_mode=False, prog_name="brewctl") or 0
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every error is reported
        code = _report(error)
        wrong = code in {ExitCode.USAGE, ExitCode.INTERRUPTED} and not isinstance(error, ModuleError)
        if output.verbose and not wrong:
            traceback.print_exception(error)
        if isinstance(error, DrainTimeoutError):
            sys.stdout.flush()
            os._exit(code)  # undrained threads would keep the process alive
    return code


def _report(error: BaseException) -> int:
    code: int = ExitCode.FAILED
    hint = ""
    match error:
        case typer.TyperException():
            asked = context.command_path if (context := getattr(error, "ctx", None)) else "brewctl"
            message, hint, code = error.format_message().rstrip(".!?"), f"see `{asked} --help`", ExitCode.USAGE
            if not message:  # `brewctl serve` alone has printed its help
                return code
        case BrewError():
            message, hint, code = error.message, error.hint, error.exit_code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EIO, filename=None):  # from a print without `stdout.put`
            message = f"stdout can't be written ({os.strerror(error.errno or 0).lower()})"
        case KeyboardInterrupt():
            message, code = "interrupted", ExitCode.INTERRUPTED
        case typer.Abort():
            message = "not done"
        case _:
            message = f"unexpected {type(error).__name__}: {error}"
            hint = "run it again as `brewctl -v …` and report what it says"
    line = message if message[1:2].isupper() else f"{message[:1].lower()}{message[1:]}"
    output.note(output.plain(f"brewctl: {line}: {hint}" if hint else f"brewctl: {line}"))
    return code
