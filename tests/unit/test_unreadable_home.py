"""A user whose home folder can't be read, as an arbitrary user of a container."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import BREWCTL

Brewctl = Callable[..., subprocess.CompletedProcess[str]]

# Port 1 is closed on every machine that we have seen.
POSTGRES = {"BREW_DATABASE_URL": "postgresql://127.0.0.1:1/shop"}
KAFKA = {"BREW_KAFKA_BROKERS": "127.0.0.1:1"}
NAMES_THE_VARIABLE = "(permission denied): set BREW_HOME to a folder of yours\n"


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o000)
    yield folder
    folder.chmod(0o700)


@pytest.fixture
def brewctl(closed: Path) -> Brewctl:
    """Run the binary with this home, without root's right to read every folder."""
    drops = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

    def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*drops, BREWCTL, *arguments],
            env={**os.environ, "HOME": str(closed), "BREW_HOME": "", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": "", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("counts", POSTGRES),
        ("serve order --node order-1", POSTGRES | KAFKA),
        ("consume inventory --node inventory-1", POSTGRES | KAFKA),
        ("topic create", KAFKA),
        ("db grants inventory --apply --database-url postgresql://127.0.0.1:1/shop", {}),
        ("create-order --customer c1 --addr 127.0.0.1:1", {}),
    ],
)
def test_a_command_whose_servers_are_named_goes_to_them(brewctl: Brewctl, command: str, env: dict[str, str]) -> None:
    refused = brewctl(*command.split(), **env)
    assert refused.returncode == 3, refused.stderr
    assert "127.0.0.1:1" in refused.stderr


@pytest.mark.parametrize("command", ["up", "down", "down --purge", "status", "env", "counts", "start order"])
def test_a_command_of_the_sandbox_names_the_variable(brewctl: Brewctl, command: str) -> None:
    refused = brewctl(*command.split())
    assert refused.returncode == 1
    assert refused.stderr.startswith("brewctl: /")
    assert refused.stderr.endswith(NAMES_THE_VARIABLE)
    assert len(refused.stderr.splitlines()) == 1


def test_a_home_that_the_user_named_is_never_passed_over(brewctl: Brewctl, closed: Path) -> None:
    refused = brewctl("counts", BREW_HOME=str(closed), **POSTGRES)
    assert refused.returncode == 1
    assert refused.stderr.endswith(NAMES_THE_VARIABLE)


def test_the_doctor_takes_it_for_no_fault_of_its_own(brewctl: Brewctl) -> None:
    examined = brewctl("doctor")
    assert examined.returncode == 1
    assert "set BREW_HOME to a folder of yours" in examined.stdout
    assert "fault of brewctl" not in examined.stdout
