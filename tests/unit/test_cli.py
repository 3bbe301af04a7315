"""The installed binary without any server: help, misuse, absent servers, questions before destruction."""

import json
import os
import pty
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import typer.core
import typer.main

from brewctl import __version__
from brewctl.cli.main import COMMANDS as NAMES
from brewctl.cli.main import make_app, root_command
from brewctl.sandbox import state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State
from brewctl.sql import migrations
from tests.conftest import BREWCTL, run

Done = subprocess.CompletedProcess[str]
Brewctl = Callable[..., Done]

PASSWORD = "hunter2"
# Port 1 is closed on every machine that we have seen.
POSTGRES = {"BREW_DATABASE_URL": f"postgresql://brew:{PASSWORD}@127.0.0.1:1/shop"}
KAFKA = {"BREW_KAFKA_BROKERS": "127.0.0.1:1"}
BOTH = {**POSTGRES, **KAFKA}


@pytest.fixture
def brewctl(tmp_path: Path) -> Brewctl:
    """Run the binary in an empty home."""

    def call(*arguments: str, **env: str) -> Done:
        return run(*arguments, env={"BREW_HOME": str(tmp_path / "home"), **env})

    return call


def complaint(done: Done, code: int) -> str:
    """The one line that a failed command has on stderr."""
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("\n")
    (line,) = done.stderr.splitlines()
    assert re.match(r"brewctl: ([^A-Z]|BREW_)", line), line
    assert "Traceback" not in line
    assert not re.search(r"unexpected \w+:", line), line
    assert PASSWORD not in line
    return line


def commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every command's words, and whether it does something itself."""
    yield path, False
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), True


def tree() -> list[tuple[tuple[str, ...], bool]]:
    return list(commands(root_command()))


def registered() -> set[str]:
    """The names that the modules register, whatever the lists of help say."""
    every = typer.main.get_command(make_app(NAMES))
    assert isinstance(every, typer.core.TyperGroup)
    return set(every.commands)


COMMANDS = [words for words, does in tree() if does]
GROUPS = [words for words, does in tree() if not does]


# Help


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(brewctl: Brewctl, words: tuple[str, ...]) -> None:
    shown = brewctl(*words, "-h")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"Usage: brewctl {' '.join(words)} " in shown.stdout
    example, _, named = shown.stdout.partition("Example: ")[2].partition("Environment: ")
    assert f"brewctl {' '.join(words)}".replace("MODULE:NAME", "loyalty:points") in example
    # Every variable that an option has is named, and the home that all of them read.
    assert {"BREW_HOME", *re.findall(r"\[env(?: var)?:[\s│]+(BREW_\w+)", shown.stdout)} <= set(
        re.findall(r"\w+", named)
    )
    summary, *_ = (line for line in shown.stdout.splitlines() if line.strip() and "Usage:" not in line)
    assert summary.rstrip().endswith(".")


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_every_group_lists_its_commands(brewctl: Brewctl, words: tuple[str, ...]) -> None:
    shown = brewctl(*words, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for *path, name in COMMANDS:
        if tuple(path) == words:
            assert re.search(rf"^│ {name} ", shown.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [(), ("serve",)])
def test_a_group_alone_shows_its_help(brewctl: Brewctl, words: tuple[str, ...]) -> None:
    shown = brewctl(*words)
    assert shown.returncode == 2
    assert "Usage: brewctl" in shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        ("counts", "BREW_DATABASE_URL"),
        ("verify", "BREW_KAFKA_BROKERS"),
        ("verify", "BREW_TOPIC"),
        ("create-order", "BREW_ORDER_ADDRS"),
        ("load", "BREW_ORDER_ADDRS"),
    ],
)
def test_help_names_the_variable_of_an_option(brewctl: Brewctl, command: str, variable: str) -> None:
    assert variable in brewctl(command, "--help").stdout


def test_each_command_has_its_line_in_the_list(brewctl: Brewctl) -> None:
    listed = re.findall(r"^│ (\S+) +\S.*\. +│$", brewctl("--help").stdout, re.MULTILINE)
    assert set(listed) >= {words[0] for words in [*COMMANDS, *GROUPS[1:]]}
    assert registered() == set(root_command().commands)


def test_help_in_a_pipe_has_no_colours(brewctl: Brewctl) -> None:
    assert "\x1b" not in brewctl("--help").stdout


def test_version(brewctl: Brewctl) -> None:
    shown = brewctl("--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"brewctl {__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script(brewctl: Brewctl, shell: str) -> None:
    """As the shell asks for it; `--show-completion` looks which shell runs it, and a test has none."""
    shown = brewctl(_BREWCTL_COMPLETE=f"source_{shell}")
    assert shown.returncode == 0
    assert "_BREWCTL_COMPLETE" in shown.stdout


def test_completion(brewctl: Brewctl) -> None:
    shown = brewctl(_BREWCTL_COMPLETE="complete_bash", COMP_WORDS="brewctl co", COMP_CWORD="1")
    assert set(shown.stdout.split()) == {"consume", "counts"}


def test_completion_of_groups_without_kafka(brewctl: Brewctl) -> None:
    words = {"COMP_WORDS": "brewctl groups reset no", "COMP_CWORD": "3"}
    shown = brewctl(_BREWCTL_COMPLETE="complete_bash", **words, **KAFKA)
    assert (shown.stdout.split(), shown.stderr) == (["notifications"], "")


def test_completion_of_what_can_not_be_looked_up_is_silent(brewctl: Brewctl) -> None:
    shown = brewctl(_BREWCTL_COMPLETE="complete_bash", COMP_WORDS="brewctl trace 01", COMP_CWORD="2", **POSTGRES)
    assert (shown.returncode, shown.stdout.strip(), shown.stderr) == (0, "", "")


# Misuse


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nope",), "--nope"),
        (("nope",), "'nope'"),
        (("db", "nope"), "brewctl db --help"),
        (("status", "extra"), "extra"),
        (("create-order",), "--customer"),
        (("create-order", "--customer", "c1", "--amount-cents", "x"), "--amount-cents"),
        (("create-order", "--customer", "c1", "--amount-cents", str(2**63)), "10^12"),
        (("create-order", "--customer", "c1", "--addr", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("create-order", "--customer", "c1", "--timeout", "0"), "--timeout"),
        (("cancel-order",), "ORDER_ID"),
        (("cancel-order", "nonsense"), "'nonsense' is no order id"),
        (("cancel-order", ""), "'' is no order id"),
        (("cancel-order", "0199c2f4-1b2c-7000-8000-0123456789ab0"), "is no order id"),
        (("cancel-order", "x" * 10_000), "is no order id"),
        (("cancel-order", "0199c2f4-1b2c-7000-8000-0123456789ab", "-"), "'-' is no order id"),
        (("cancel-order", "0199c2f4-1b2c-7000-8000-0123456789ab", "--addr", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("load", "--cancel", "1.1"), "--cancel"),
        (("load", "--cancel", "-0.1"), "--cancel"),
        (("load", "--cancel", "some"), "--cancel"),
        (("load", "--cancel", "nan"), "--cancel"),
        (("create-order", "--customer", "c1", "--tenant", "a\nb"), "tenant"),
        (("load", "--duration", "5", "--orders", "5"), "--duration and --orders"),
        (("load", "--duration", "0"), "--duration"),
        (("load", "--orders", "0"), "--orders"),
        (("load", "--rate", "0"), "--rate"),
        (("load", "--rate", "nan"), "--rate"),
        (("load", "--concurrency", "0"), "--concurrency"),
        (("load", "--warmup", "-1"), "--warmup"),
        (("load", "--addr", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("serve", "order", "--node", "a b"), "--node 'a b'"),
        (("consume", "inventory", "--node", "inventory-1\n"), "--node"),
        (("serve", "order", "--port", "65536"), "--port"),
        (("serve", "order", "--workers", "0"), "--workers"),
        (("serve", "order", "--workers", "65"), "--workers"),
        (("serve", "order", "--workers", "10", "--node", "n" * 62), "61 characters"),
        (("consume", "inventory", "--session-timeout", "2"), "--session-timeout"),
        (("topic", "create", "--topic", "a b"), "'a b' is no topic name"),
        (("counts", "--database-url", "nonsense"), "postgresql://USER@HOST:PORT/NAME"),
        (("trace", "latest"), "'latest' is no order id"),
        (("trace", "01", "--timeout", "5"), "--follow"),
        (("demo", "--orders", "1"), "--orders"),
        (("demo", "--kill-at", "200"), "--kill-at"),
        (("demo", "--speed", "slow"), "--speed"),
        (("demo", "--step"), "--step needs a terminal"),
        (("demo", "--report", "demo.txt"), "must be a .html or .svg file"),
        (("demo", "--report", "nowhere/demo.html"), "in a folder that is there"),
        (("demo", "--picture", "demo.html"), "must be a .svg file"),
        (("up", "--brokers", "4"), "--brokers"),
        (("start",), "ROLE…"),
        (("start", "waiter"), "no role 'waiter': choose among order, publisher, inventory, notifications"),
        (("start", "order", "inventory", "--node", "mine"), "--node names a single node"),
        (("start", "order", "--node", "../x"), "--node '../x'"),
        (("stop",), "nodes or --all: none was started: see `brewctl start --help`"),
        (("stop", "order-1", "--all"), "nodes or --all"),
        (("logs", "--tail", "-1"), "--tail"),
        (("groups", "nope"), "brewctl groups --help"),
        (("groups", "--json", "reset", "inventory", "--to", "latest"), "`groups reset`"),
        (("groups", "reset", "--to", "latest"), "'NAME'"),
        (("groups", "reset", "inventory"), "--to"),
        (("groups", "reset", "inventory", "--to", "soon"), "2026-11-25T12:00"),
    ],
)
def test_misuse_is_one_line(brewctl: Brewctl, arguments: tuple[str, ...], named: str) -> None:
    assert named in complaint(brewctl(*arguments), 2)


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (("counts",), f"postgresql://u:{PASSWORD}@127.0.0.1:1/d"),
        (("db", "init"), f"postgresql://127.0.0.1:1/d?user=u&password={PASSWORD}"),
        (("serve", "order"), f"host=127.0.0.1 port=1 password={PASSWORD}"),
        (("consume", "inventory"), f"postgresql://u:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/d"),
        (("demo", "--yes"), f"postgresql://:{PASSWORD}@/d"),
    ],
)
def test_a_password_is_no_argument(brewctl: Brewctl, command: tuple[str, ...], url: str) -> None:
    """In the shell's history and in the process list it would be everybody's. The line doesn't repeat it."""
    assert "BREW_DATABASE_URL" in complaint(brewctl(*command, "--database-url", url), 2)


@pytest.mark.parametrize(
    ("command", "variable", "value", "named"),
    [
        (("topic", "create"), "BREW_KAFKA_BROKERS", "nowhere", "'nowhere' is not HOST:PORT"),
        (("consume", "inventory"), "BREW_KAFKA_BROKERS", "127.0.0.1:9092,h:0", "'h:0' is not HOST:PORT"),
        (("create-order", "--customer", "c1"), "BREW_ORDER_ADDRS", "h", "'h' is not HOST:PORT"),
        (("load",), "BREW_ORDER_ADDRS", "h", "'h' is not HOST:PORT"),
        (("topic", "create"), "BREW_TOPIC", "..", "'..' is no topic name"),
        (("counts",), "BREW_DATABASE_URL", f"postgres//u:{PASSWORD}@h/d", "postgresql://USER@HOST:PORT/NAME"),
        (("db", "init"), "BREW_DATABASE_URL", PASSWORD, "postgresql://USER@HOST:PORT/NAME"),
        (("consume", "inventory"), "BREW_SESSION_TIMEOUT", "soon", "BREW_SESSION_TIMEOUT"),
    ],
)
def test_a_malformed_variable_is_one_line(
    brewctl: Brewctl, command: tuple[str, ...], variable: str, value: str, named: str
) -> None:
    assert named in complaint(brewctl(*command, **{variable: value}), 2)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("stop", "order-1"), "no node 'order-1' in the background: none was started"),
        (("logs", "../state"), "no log of '../state'"),
    ],
)
def test_a_node_that_was_not_started(brewctl: Brewctl, command: tuple[str, ...], named: str) -> None:
    assert named in complaint(brewctl(*command), 1)


# Destruction


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


# No servers


def test_the_schema_is_printed_offline(brewctl: Brewctl) -> None:
    shown = brewctl("db", "init", "--print-sql", **POSTGRES)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.strip() == "\n".join(migrations.values()).strip()


@pytest.mark.parametrize(
    "command",
    [
        ("counts",),
        ("counts", "--json"),
        ("trace", "01"),
        ("db", "init"),
        ("serve", "order"),
        ("serve", "order", "--workers", "3", "--port", "0"),
        ("start", "order", "inventory"),
    ],
)
def test_without_postgres(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    line = complaint(brewctl(*command, **BOTH), 3)
    assert line.startswith("brewctl: postgres 127.0.0.1:1/shop refused the connection: ")
    assert "`brewctl up`" in line
    assert "BREW_DATABASE_URL" in line


@pytest.mark.parametrize(
    "command",
    [
        ("topic", "create"),
        ("consume", "inventory"),
        ("consume", "notifications"),
        ("groups",),
        ("groups", "--watch"),
        ("groups", "reset", "inventory", "--to", "latest"),
    ],
)
def test_without_kafka(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    line = complaint(brewctl(*command, **BOTH), 3)
    assert line.startswith("brewctl: kafka 127.0.0.1:1 ")
    assert "`brewctl up`" in line
    assert "BREW_KAFKA_BROKERS" in line


@pytest.mark.parametrize("command", [("create-order", "--customer", "c1"), ("load",), ("load", "--rate", "5")])
def test_without_an_order_service(brewctl: Brewctl, command: tuple[str, ...]) -> None:
    line = complaint(brewctl(*command, "--addr", "127.0.0.1:1"), 3)
    assert line.startswith("brewctl: order-service 127.0.0.1:1 refused the connection: ")
    assert "`brewctl serve order" in line


def test_a_host_that_does_not_exist(brewctl: Brewctl) -> None:
    line = complaint(brewctl("counts", BREW_DATABASE_URL="postgresql://u@nowhere.invalid/d"), 3)
    assert "nowhere.invalid" in line
    assert "unknown host" in line


# No sandbox


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


# Results


def test_a_reader_that_goes_early_is_no_error(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"({BREWCTL} db init --print-sql; echo $? >&2) | true"],
        env={**os.environ, "BREW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == "0\n"


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    [
        ("db init --print-sql", ">&-", 0),
        ("db init --print-sql", ">&- 2>&- <&-", 0),
        ("--help", ">&- <&-", 0),
        ("nope", "2>&-", 2),
        ("nope", "2>/dev/full", 2),
        ("create-order --customer c1 --addr 127.0.0.1:1", "2>&-", 3),
        ("create-order --customer c1 --addr 127.0.0.1:1", "<&- >&- 2>&-", 3),
        ("db init --print-sql", ">/dev/full", 1),
        ("--help", ">/dev/full", 1),
    ],
)
def test_the_exit_code_is_right_whatever_the_streams_are(
    tmp_path: Path, arguments: str, closed: str, code: int
) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"{BREWCTL} {arguments} {closed}"],
        env={**os.environ, "BREW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.strip() in {"", "brewctl: stdout can't be written (no space left on device)"}


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


def test_the_module_is_the_same_command(brewctl: Brewctl, tmp_path: Path) -> None:
    module = subprocess.run(
        [str(Path(BREWCTL).with_name("python")), "-m", "brewctl", "nope"],
        env={**os.environ, "BREW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert module.stderr == brewctl("nope").stderr
    assert module.returncode == 2


def test_nothing_is_removed_where_no_sandbox_was(tmp_path: Path) -> None:
    home = tmp_path / "somebodys"
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "mine").write_text("")
    before = home.stat().st_mode
    assert run("down", "--purge", env={"BREW_HOME": str(home)}).returncode == 0
    assert (home / "logs" / "mine").exists()
    assert home.stat().st_mode == before
    assert [entry.name for entry in home.iterdir()] == ["logs"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1:99999/d",
        "postgresql://u@h:x/d",
        "postgresql://u@127.0.0.1:1/d?sslmode=foo",
        "postgresql://u@[::1/d",
    ],
)
def test_a_url_that_can_not_be_used_is_misuse(tmp_path: Path, url: str) -> None:
    done = run("counts", env={"BREW_HOME": str(tmp_path), "BREW_DATABASE_URL": url})
    assert done.returncode == 2
    assert done.stderr.startswith("brewctl: BREW_DATABASE_URL")
    assert done.stderr.count("\n") == 1


def test_a_password_with_spaces_around_is_a_password(tmp_path: Path) -> None:
    done = run("counts", "--database-url", "host=h password = hunter2", env={"BREW_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert "must not hold a password" in done.stderr
    assert "hunter2" not in done.stderr
