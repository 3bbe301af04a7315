"""Three brokers for the story; and a sandbox with one broker, for tests that break servers."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import real_servers, run


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that name real servers: a sandbox as `brewctl up` makes it, with three brokers."""
    with real_servers(tmp_path_factory.mktemp("sandbox"), brokers=3) as found:
        yield found


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a running sandbox. A test that stops a server brings it back."""
    home = tmp_path_factory.mktemp("home")
    up = run("up", "--brokers", "1", env={"BREW_HOME": str(home)}, timeout=600)
    assert up.returncode == 0, up.stderr
    yield home
    down = run("down", "--purge", env={"BREW_HOME": str(home)})
    assert down.returncode == 0, down.stderr
    assert {entry.name for entry in home.iterdir()} <= {"lock"}


def brewctl(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in that home."""
    return run(*arguments, env={"BREW_HOME": str(home)})


def status(home: Path) -> dict[str, dict[str, object]]:
    """Read `status --json`, by server."""
    rows = json.loads(brewctl(home, "status", "--json").stdout)
    return {row["name"]: row for row in rows}


def pid(home: Path, name: str) -> int:
    """Read the pid of a server."""
    return int(str(status(home)[name]["pid"]))


def environment(home: Path, *arguments: str) -> dict[str, str]:
    """Read what `env` exports."""
    lines = brewctl(home, "env", *arguments).stdout.splitlines()
    return {match[1]: match[2].strip("'") for line in lines if (match := re.fullmatch(r"export (\w+)=(.*)", line))}
