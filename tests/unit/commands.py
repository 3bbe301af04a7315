"""Runs commands in the test's own process, where all that differs from the installed one is how it starts and exits."""

import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from brewctl.cli import main

Done = subprocess.CompletedProcess[str]
Brewctl = Callable[..., Done]

PASSWORD = "hunter2"
# Port 1 is closed on every machine that we have seen.
POSTGRES = {"BREW_DATABASE_URL": f"postgresql://brew:{PASSWORD}@127.0.0.1:1/shop"}
KAFKA = {"BREW_KAFKA_BROKERS": "127.0.0.1:1"}
BOTH = {**POSTGRES, **KAFKA}


@pytest.fixture
def brewctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Brewctl:
    """Run a command in an empty home."""

    def call(*arguments: str, **env: str) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO())
            for name, value in {"BREW_HOME": str(tmp_path / "home"), "GRPC_VERBOSITY": "NONE", **env}.items():
                patch.setenv(name, value)
            capsys.readouterr()
            try:
                code = main.run(arguments)
            except SystemExit as left:  # a completion
                code = int(left.code or 0)
        return Done(arguments, code, *capsys.readouterr())

    return call


def complaint(done: Done, code: int) -> str:
    """The one line that a failed command has on stderr."""
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("\n")
    (line,) = done.stderr.splitlines()
    assert re.match(r"brewctl: ([^A-Z]|BREW_)", line), line
    assert not re.search(r"unexpected \w+:", line), line
    assert PASSWORD not in line
    return line
