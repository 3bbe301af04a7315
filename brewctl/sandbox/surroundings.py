"""What the sandbox's servers are started with, so that they start the same from every shell."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from brewctl.errors import UsageError

# Where a server's own programs find a shell; nothing else of the user's variables is of use to them, and many harm:
# PGDATA, PGPORT, PGOPTIONS, JAVA_TOOL_OPTIONS, _JAVA_OPTIONS, KAFKA_OPTS, LD_PRELOAD, LC_ALL, TZ, …
_KEPT = ("PATH",)
# Where PostgreSQL's bound is 1024 for a file of its own.
_LONGEST_BYTES = 950


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a server: the few that it needs, and `more`. Messages are English, and names UTF-8."""
    kept = {name: value for name in _KEPT if (value := os.environ.get(name))}
    return {**kept, "LC_ALL": "C.UTF-8", **(more or {})}


def run(
    command: Sequence[str | Path], *, timeout_s: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a server's own program to its end, by default with what `environment` returns; what it says is text.

    Raises OSError where it can't be run, subprocess.TimeoutExpired where it takes longer than `timeout_s` seconds.
    """
    return subprocess.run(  # noqa: S603 - commands of our own making
        [str(part) for part in command],
        cwd=cwd,
        env=environment() if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def require_usable(folder: Path, variable: str) -> None:
    """Raise UsageError for a folder in which a server can't work because of its name; `variable` names another."""
    name, hint = os.fsencode(folder), f"set {variable} to another folder"
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        # It would make another folder beside it.
        raise UsageError(f"{folder}: java can't work in a folder whose name is no UTF-8", hint=hint) from None
    if len(name) > _LONGEST_BYTES:
        message = f"{variable} has {len(name)} bytes: PostgreSQL takes no folder of more than {_LONGEST_BYTES}"
        raise UsageError(message, hint=hint)
