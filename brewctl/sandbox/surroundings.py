"""The environment in which the sandbox's servers start, the same from every shell."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from brewctl.errors import UsageError

# Servers need PATH to find a shell. The user's other variables are left out, as many would change how servers work:
# PGDATA, PGPORT, PGOPTIONS, JAVA_TOOL_OPTIONS, _JAVA_OPTIONS, KAFKA_OPTS, LD_PRELOAD, LC_ALL, TZ, …
_KEPT = ("PATH",)
# PostgreSQL's paths have at most 1024 bytes; this leaves room for its own file names below the folder.
_LONGEST_BYTES = 950


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables of a server, with `more`. Messages are in English, file names UTF-8."""
    kept = {name: value for name in _KEPT if (value := os.environ.get(name))}
    return {**kept, "LC_ALL": "C.UTF-8", **(more or {})}


def run(
    command: Sequence[str | Path], *, timeout_s: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a server's program to its end, by default in `environment`; return its exit code and output.

    Raises OSError if it can't be run, subprocess.TimeoutExpired if it takes longer than `timeout_s` seconds.
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
    """Raise UsageError if a server can't use this folder because of its path. `variable`: the setting that names it."""
    name, hint = os.fsencode(folder), f"set {variable} to another folder"
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        # Java would create another folder beside it.
        raise UsageError(f"{folder}: java can't work in a folder whose name is no UTF-8", hint=hint) from None
    if len(name) > _LONGEST_BYTES:
        message = f"{variable} has {len(name)} bytes: PostgreSQL takes no folder of more than {_LONGEST_BYTES}"
        raise UsageError(message, hint=hint)
