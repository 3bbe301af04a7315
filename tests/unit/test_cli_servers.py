"""Commands without the servers or the sandbox that they need, and questions before destruction."""

import json
import os
import pty
import subprocess
from pathlib import Path

import psutil
import pytest

from brewctl.sandbox import state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State
from tests.conftest import BREWCTL, run
from tests.unit import commands
from tests.unit.commands import BOTH, KAFKA, PASSWORD, POSTGRES, Brewctl, Done, complaint

brewctl = commands.brewctl


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("stop", "order-1"), "no node 'order-1' in the background: none was started"),
        (("logs", "../state"), "no log of '../state'"),
    ],
)
def test_a_node_that_was_not_started(brewctl: Brewctl, command: tuple[str, ...], named: str) -> None:
    assert named in complaint(brewctl(*command), 1)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("db", "init", "--reset"), "every order in 127.0.0.1:1/shop"),
        (("topic", "create", "--recreate"), "topic usecase-09-01-order-created"),
        (("demo",), "every order"),
    ],
)
def test_without_a_terminal_nothing_is_destroyed(brewctl: Brewctl, command: tuple[str, ...], named: str) -> None:
    line = complaint(brewctl(*command, **BOTH), 2)
    assert named in line
    assert "--yes" in line


@pytest.mark.parametrize(
    ("command", "server"),
    [(("db", "init", "--reset"), "postgres"), (("topic", "create", "--recreate"), "kafka"), (("demo",), "postgres")],
)
def test_with_yes_nothing_is_asked(brewctl: Brewctl, command: tuple[str, ...], server: str) -> None:
    assert complaint(brewctl(*command, "--yes", **BOTH), 3).startswith(f"brewctl: {server} 127.0.0.1:1")


@pytest.mark.parametrize("command", [("db", "init", "--reset"), ("topic", "create", "--recreate")])
def test_the_default_servers_are_not_the_sandboxs(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    assert "--yes" in complaint(brewctl(*command), 2)


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("y\n", 3)])
def test_in_a_terminal_it_is_asked(tmp_path: Path, answer: str, code: int) -> None:
    controller, terminal = pty.openpty()
    try:
        os.write(controller, answer.encode())
        asked = subprocess.run(
            [BREWCTL, "db", "init", "--reset"],
            env={**os.environ, **POSTGRES, "BREW_HOME": str(tmp_path)},
            stdin=terminal,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            timeout=60,
            check=False,
        )
        screen = os.read(controller, 10_000).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert asked.returncode == code, screen
    assert "This destroys every order in 127.0.0.1:1/shop. Go on? [y/N]" in screen
    assert ("brewctl: not done" in screen) == (code == 1)
    assert PASSWORD not in screen


@pytest.mark.parametrize("env", [POSTGRES, KAFKA])
def test_the_demo_wants_both_servers_or_none(brewctl: Brewctl, env: dict[str, str]) -> None:
    line = complaint(brewctl("demo", "--yes", **env), 2)
    assert "BREW_DATABASE_URL" in line
    assert "BREW_KAFKA_BROKERS" in line


def test_order_nodes_alone_are_no_sandbox(tmp_path: Path, brewctl: Brewctl) -> None:
    """The servers they work on are the user's own: nothing of them is emptied without a question."""
    known = State.without_sandbox()
    this = psutil.Process()
    known.nodes["order-1"] = Server("order-1", this.pid, this.create_time(), 50081, "", role="order")
    (tmp_path / "home").mkdir()
    state.save(tmp_path / "home", known)
    assert brewctl("env").stdout == "export BREW_ORDER_ADDRS=127.0.0.1:50081\n"
    assert json.loads(brewctl("env", "--json").stdout) == {"BREW_ORDER_ADDRS": "127.0.0.1:50081"}
    assert "--yes" in complaint(brewctl("db", "init", "--reset"), 2)


@pytest.mark.parametrize(
    "command",
    [
        ("counts",),
        ("counts", "--json"),
        ("trace", "01"),
        ("db", "init"),
    ],
)
def test_without_postgres(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    miss_postgres(brewctl(*command, **BOTH))


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "order"),
        ("serve", "order", "--workers", "3", "--port", "0"),
        ("start", "order", "inventory"),
    ],
)
def test_a_process_without_postgres(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A role sets its process up, with logs and signals: that is no other test's to have."""
    miss_postgres(run(*command, env={"BREW_HOME": str(tmp_path), **BOTH}))


def miss_postgres(done: Done) -> None:
    line = complaint(done, 3)
    assert line.startswith("brewctl: postgres 127.0.0.1:1/shop refused the connection: ")
    assert "`brewctl up`" in line
    assert "BREW_DATABASE_URL" in line


@pytest.mark.parametrize(
    "command",
    [
        ("topic", "create"),
        ("groups",),
        ("groups", "--watch"),
        ("groups", "reset", "inventory", "--to", "latest"),
    ],
)
def test_without_kafka(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    miss_kafka(brewctl(*command, **BOTH))


def test_a_consumer_without_kafka(tmp_path: Path) -> None:
    miss_kafka(run("consume", "inventory", env={"BREW_HOME": str(tmp_path), **BOTH}))


def miss_kafka(done: Done) -> None:
    line = complaint(done, 3)
    assert line.startswith("brewctl: kafka 127.0.0.1:1 ")
    assert "`brewctl up`" in line
    assert "BREW_KAFKA_BROKERS" in line


@pytest.mark.parametrize("command", [("create-order", "--customer", "c1"), ("load",), ("load", "--rate", "5")])
def test_without_an_order_service(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    line = complaint(brewctl(*command, "--addr", "127.0.0.1:1"), 3)
    assert line.startswith("brewctl: order-service 127.0.0.1:1 refused the connection: ")
    assert "`brewctl serve order" in line


def test_env_without_a_sandbox(brewctl: Brewctl) -> None:
    assert "`brewctl up`" in complaint(brewctl("env"), 3)


def test_status_without_a_sandbox(brewctl: Brewctl) -> None:
    shown = brewctl("status")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "`brewctl up`" in shown.stdout
    as_json = brewctl("status", "--json")
    assert (as_json.returncode, as_json.stdout) == (1, "[]\n")


def test_down_without_a_sandbox(brewctl: Brewctl) -> None:
    shown = brewctl("down")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("nothing was running")


@pytest.mark.parametrize("command", ["status", "env", "counts"])
def test_a_damaged_state_names_the_way_out(tmp_path: Path, brewctl: Brewctl, command: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "state.json").write_text("{")
    assert "`brewctl down --purge`" in complaint(brewctl(command), 1)


def test_the_way_out_of_a_damaged_state(tmp_path: Path, brewctl: Brewctl) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "state.json").write_text("{")
    assert "`brewctl down --purge`" in complaint(brewctl("down"), 1)
    assert brewctl("down", "--purge").returncode == 0
    assert brewctl("down").returncode == 0


def test_servers_that_are_named_need_no_home_folder(brewctl: Brewctl, tmp_path: Path) -> None:
    """A home folder below what is none, such as /dev/null, is no sandbox's."""
    (tmp_path / "file").write_text("")
    refused = brewctl("counts", HOME=str(tmp_path / "file"), BREW_HOME="", XDG_STATE_HOME="", **POSTGRES)
    assert refused.returncode == 3
    assert "refused the connection" in refused.stderr


def test_verbose_shows_where_an_error_comes_from(brewctl: Brewctl) -> None:
    shown = brewctl("-v", "counts", **POSTGRES)
    assert shown.returncode != 0
    assert "Traceback" in shown.stderr
    assert PASSWORD not in shown.stderr


def test_nothing_is_removed_where_no_sandbox_was(brewctl: Brewctl, tmp_path: Path) -> None:
    home = tmp_path / "somebodys"
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "mine").write_text("")
    before = home.stat().st_mode
    assert brewctl("down", "--purge", BREW_HOME=str(home)).returncode == 0
    assert (home / "logs" / "mine").exists()
    assert home.stat().st_mode == before
    assert [entry.name for entry in home.iterdir()] == ["logs"]
