"""The servers that mutations are played on."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from brewctl.config import environment, resolve
from brewctl.sandbox import state
from tests.conftest import run


@contextlib.contextmanager
def servers() -> Iterator[dict[str, str]]:
    """The variables that name real servers: those that are given, else a sandbox for these plays alone."""
    names = ("BREW_DATABASE_URL", "BREW_KAFKA_BROKERS")
    if all(os.environ.get(name) for name in names):
        yield {name: os.environ[name] for name in names}
        return
    with tempfile.TemporaryDirectory() as home:
        env = {"BREW_HOME": home}
        try:
            up = run("up", env=env, timeout=600)
            if up.returncode:
                sys.exit(up.stderr)
            settings = resolve({}, {}, state.endpoints(Path(home)))
            yield {name: value for name, value in environment(settings).items() if name in names}
        finally:
            run("down", "--purge", env=env)
