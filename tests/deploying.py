"""What is shipped to deploy brewctl, and whether its command lines and variables are ones that the program knows."""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.core

from brewctl import config, security
from brewctl.cli.main import root_command
from brewctl.config import SHORT_NAMES
from brewctl.limits import Limits
from brewctl.roles import listening, workers

ROOT = Path(__file__).resolve().parents[1]
# After a stop: what is in hand, a worker that is late, the last traces.
DRAIN_S = Limits.drain_s + workers._LATE_S + 2.0
# Of Python and of OpenTelemetry, which are read by others.
_OTHERS = re.compile(r"PYTHON[A-Z]+|TMPDIR|OTEL_[A-Z_]+")


def check(arguments: Sequence[str]) -> str:
    """Parse a command line as the program does, and return the command's name. Raises what it would raise."""
    command: Any = root_command()
    context: Any = None
    rest = list(arguments)
    name: str | None = None
    while isinstance(command, typer.core.TyperGroup):
        context = command.make_context(name, rest, parent=context)
        if command.invoke_without_command and not context._protected_args:
            return name or ""
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)
    return name or ""


def _options(command: Any) -> Iterator[Any]:
    yield from command.params
    for each in getattr(command, "commands", {}).values():
        yield from _options(each)


@functools.cache
def known_variables() -> set[str]:
    """The variables that the program reads."""
    secured = (security.DATABASE | security.KAFKA | security.ORDER).values()
    of_options = {option.envvar for option in _options(root_command()) if option.envvar}
    own = {config.own_database_variable(group) for group in SHORT_NAMES}
    return {
        *config.ENVIRONMENT.values(),
        *secured,
        *listening.VARIABLES,
        *of_options,
        *own,
        *(f"{each}_FILE" for each in own),
    }


def unknown(variables: Sequence[str]) -> set[str]:
    """Those of these variables that nobody reads."""
    return {each for each in variables if not _OTHERS.fullmatch(each)} - known_variables()
