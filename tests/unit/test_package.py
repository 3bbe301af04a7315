"""What `from brewctl import …` gives to a service or a downstream of one's own, and what that costs the command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import brewctl
from brewctl import errors, security
from brewctl.cli.main import COMMANDS
from brewctl.delivery import downstream, events
from brewctl.delivery.outbox import adding
from brewctl.proto import orders_pb2
from tests.deploying import ROOT


def test_what_users_need_is_there() -> None:
    assert brewctl.add_event is adding.add_event
    assert brewctl.Event is events.Event
    assert brewctl.downstream is downstream.downstream
    assert (brewctl.Downstream, brewctl.Reject, brewctl.Later) == (
        downstream.Downstream,
        downstream.Reject,
        downstream.Later,
    )
    assert (brewctl.OrderCreated, brewctl.OrderCancelled) == (orders_pb2.OrderCreated, orders_pb2.OrderCancelled)
    assert (brewctl.Secret, brewctl.UsageError) == (security.Secret, errors.UsageError)
    assert {*brewctl.__all__} == {*brewctl._MODULES} <= {*dir(brewctl)}
    with pytest.raises(AttributeError, match="module 'brewctl' has no attribute 'nothing'"):
        brewctl.nothing  # noqa: B018


def test_each_place_names_this_version() -> None:
    texts = {
        name: (ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "CHANGELOG.md", "docs/deployment.md")
    }
    kustomization = (ROOT / "deploy/kubernetes/overlays/example/kustomization.yaml").read_text("utf-8")
    assert re.findall(r'^version = "(.*)"$', texts["pyproject.toml"], re.MULTILINE) == [brewctl.__version__]
    assert re.findall(r"^## \[(\d.*)\] - ", texts["CHANGELOG.md"], re.MULTILINE)[0] == brewctl.__version__
    assert {*re.findall(r"brewctl:(\d\S+)", texts["docs/deployment.md"])} == {brewctl.__version__}
    assert re.findall(r"newTag: (\S+)", kustomization) == [brewctl.__version__]


_HEAVY = {
    *("confluent_kafka", "cryptography", "google", "grpc", "httpx2", "kafka", "opentelemetry", "prometheus_client"),
    *("psutil", "psycopg", "pydantic", "pygments", "rich", "textual", "trustme"),
}
_OPTIONS = {"pydantic"}  # Typer reads them with it
_HELP = {"rich", "pygments"}
_ROLE = _OPTIONS | {"google", "kafka", "psycopg"}  # kafka-python-ng administers topics for either client
_LOOK = """
import atexit, gc, json, sys
from brewctl.cli.main import main
begun = gc.get_stats()[0]["collections"]
atexit.register(lambda: print(json.dumps([gc.get_stats()[0]["collections"] - begun, *sys.modules]), file=sys.stderr))
main()
"""


def started(command: str, exit_code: int, home: Path, client: str = "kafka-python-ng") -> tuple[int, set[str]]:
    """Run a command with all servers away; return how often garbage was looked for, and what was imported."""
    servers = {"BREW_DATABASE_URL": "postgresql://brew@127.0.0.1:1/brew", "BREW_KAFKA_BROKERS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, *command.split()],
        env={**os.environ, **servers, "BREW_HOME": str(home), "BREW_KAFKA_CLIENT": client},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    looks, *modules = json.loads(done.stderr.splitlines()[-1])
    return looks, {*modules}


@pytest.mark.parametrize(
    ("command", "exit_code", "allowed"),
    [
        ("--version", 0, set()),
        ("--help", 0, _HELP),
        ("serve order --help", 0, _OPTIONS | _HELP),
        ("counts", 3, _OPTIONS | {"google", "psycopg"}),
        ("create-order --customer c --addr 127.0.0.1:1", 3, _OPTIONS | {"google", "grpc"}),
    ],
)
def test_a_command_imports_no_library_that_it_does_not_use(
    command: str, exit_code: int, allowed: set[str], tmp_path: Path
) -> None:
    _, modules = started(command, exit_code, tmp_path)
    assert "typer" in modules
    assert modules & _HEAVY <= allowed


@pytest.mark.parametrize("client", ["kafka-python-ng", "librdkafka"])
@pytest.mark.parametrize(
    ("role", "allowed"), [("serve order", _ROLE | {"grpc"}), ("publish", _ROLE), ("consume inventory", _ROLE)]
)
def test_nor_does_a_role_with_either_client(role: str, allowed: set[str], client: str, tmp_path: Path) -> None:
    """Until it has found its servers: only then it makes its client of Kafka."""
    _, modules = started(role, 3, tmp_path, client)
    assert modules & _HEAVY <= allowed


@pytest.mark.parametrize(("command", "exit_code"), [("--version", 0), ("-v counts", 3)])
def test_a_start_imports_no_command_that_was_not_called(command: str, exit_code: int, tmp_path: Path) -> None:
    _, modules = started(command, exit_code, tmp_path)
    known = {f"brewctl.cli.{name}" for name in COMMANDS}
    assert modules & known == {f"brewctl.cli.{name}" for name in command.split() if name in COMMANDS}


def test_a_start_does_not_look_for_garbage_in_what_it_imports(tmp_path: Path) -> None:
    looks, modules = started("counts", 3, tmp_path)
    assert "psycopg" in modules
    assert looks < 20


def test_it_is_typed_for_others(tmp_path: Path) -> None:
    """A module of a user's own passes mypy --strict, and its mistakes are found."""
    (tmp_path / "mine.py").write_text(
        "import psycopg\n"
        "from psycopg.rows import dict_row\n"
        "from brewctl import Event, OrderCreated, add_event\n"
        "def pay(dsn: str) -> int:\n"
        "    with psycopg.connect(dsn, row_factory=dict_row) as tx:\n"
        "        return add_event(tx, aggregate_id='a', event_type='e', payload=OrderCreated())\n"
        "def amount(event: Event[OrderCreated]) -> int:\n"
        "    return event.data.amount_cents\n"
        "add_event('dsn', aggregate_id='a', event_type='e', payload=b'x')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", "mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert errors[0].startswith('mine.py:9: error: Argument 1 to "add_event"')
