"""Help, completion and misuse: what needs no server."""

import re
from collections.abc import Iterator

import pytest
import typer.core
import typer.main

from brewctl import __version__
from brewctl.cli.main import COMMANDS as NAMES
from brewctl.cli.main import make_app, root_command
from brewctl.sql import migrations
from tests.unit import commands
from tests.unit.commands import KAFKA, PASSWORD, POSTGRES, Brewctl, complaint

brewctl = commands.brewctl


def words_of(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every command's words, and whether it does something itself."""
    yield path, False
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from words_of(command, (*path, name))
        else:
            yield (*path, name), True


def tree() -> list[tuple[tuple[str, ...], bool]]:
    return list(words_of(root_command()))


def registered() -> set[str]:
    """The names that the modules register, whatever the lists of help say."""
    every = typer.main.get_command(make_app(NAMES))
    assert isinstance(every, typer.core.TyperGroup)
    return set(every.commands)


COMMANDS = [words for words, does in tree() if does]
GROUPS = [words for words, does in tree() if not does]


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


def test_each_command_has_its_line_in_the_list(brewctl: Brewctl) -> None:
    listed = re.findall(r"^│ (\S+) +\S.*\. +│$", brewctl("--help").stdout, re.MULTILINE)
    assert set(listed) >= {words[0] for words in [*COMMANDS, *GROUPS[1:]]}
    assert registered() == set(root_command().commands)


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
        (("cancel-order", "0199c2f4-1b2c-7000-8000-0123456789ab0"), "is no order id"),
        (("cancel-order", "0199c2f4-1b2c-7000-8000-0123456789ab", "-"), "'-' is no order id"),
        (("cancel-order", "0199c2f4-1b2c-7000-8000-0123456789ab", "--addr", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("load", "--cancel", "1.1"), "--cancel"),
        (("load", "--cancel", "nan"), "--cancel"),
        (("create-order", "--customer", "c1", "--tenant", "a\nb"), "tenant"),
        (("load", "--duration", "5", "--orders", "5"), "--duration and --orders"),
        (("load", "--duration", "0"), "--duration"),
        (("load", "--rate", "nan"), "--rate"),
        (("load", "--concurrency", "0"), "--concurrency"),
        (("load", "--warmup", "-1"), "--warmup"),
        (("load", "--addr", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("serve", "order", "--node", "a b"), "--node 'a b'"),
        (("consume", "inventory", "--node", "inventory-1\n"), "--node"),
        (("serve", "order", "--port", "65536"), "--port"),
        (("serve", "order", "--workers", "0"), "--workers"),
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
        (("counts",), f"host=h password = {PASSWORD}"),
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
        (("counts",), "BREW_DATABASE_URL", "postgresql://u@127.0.0.1:99999/d", "BREW_DATABASE_URL"),
        (("counts",), "BREW_DATABASE_URL", "postgresql://u@h:x/d", "BREW_DATABASE_URL"),
        (("counts",), "BREW_DATABASE_URL", "postgresql://u@127.0.0.1:1/d?sslmode=foo", "BREW_DATABASE_URL"),
        (("counts",), "BREW_DATABASE_URL", "postgresql://u@[::1/d", "BREW_DATABASE_URL"),
        (("consume", "inventory"), "BREW_SESSION_TIMEOUT", "soon", "BREW_SESSION_TIMEOUT"),
    ],
)
def test_a_malformed_variable_is_one_line(
    brewctl: Brewctl, command: tuple[str, ...], variable: str, value: str, named: str
) -> None:
    assert named in complaint(brewctl(*command, **{variable: value}), 2)


def test_the_schema_is_printed_offline(brewctl: Brewctl) -> None:
    shown = brewctl("db", "init", "--print-sql", **POSTGRES)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.strip() == "\n".join(migrations.values()).strip()
