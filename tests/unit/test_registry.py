"""Downstreams found as MODULE:NAME, and what is said of one that can't be."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from brewctl.config import Settings, own_database_variable, short_name
from brewctl.delivery import registry
from brewctl.delivery.schema import registration
from brewctl.errors import ModuleError, UsageError
from brewctl.security import Secret
from tests.conftest import run

GOOD = """
from brewctl import Event, OrderCreated, downstream

@downstream("loyalty", schema="points.sql")
def points(event: Event[OrderCreated], tx): ...

def plain(event, tx): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a module in it; whatever is imported from it is forgotten afterwards."""
    (tmp_path / "mine_good.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    registry._find.cache_clear()


def refusal(name: str, app_dir: str = "") -> str:
    with pytest.raises(UsageError) as caught:
        registry.find(name, app_dir)
    return str(caught.value)


def test_a_downstream_of_the_working_directory(folder: Path) -> None:
    path = list(sys.path)
    found = registry.find("mine_good:points")
    assert (found.group, found.folder, found.events) == ("loyalty", str(folder), ("order.created",))
    assert sys.path == path, "still searched"


def test_a_downstream_of_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert "is there a mine_good.py in" in refusal("mine_good:points")
    monkeypatch.setenv("BREW_APP_DIR", str(folder / "elsewhere"))
    assert registry.find("mine_good:points", "..").group == "loyalty"
    registry._find.cache_clear()
    monkeypatch.setenv("BREW_APP_DIR", "..")
    assert registry.find("mine_good:points").group == "loyalty"


def test_the_storys_own_have_short_names() -> None:
    for name in ("inventory", "notifications"):
        assert registry.find(name) is registry.find(f"brewctl.roles.{name}:DOWNSTREAM")
        assert registry.find(name).group == short_name(registry.full_name(name)) == name


def test_no_module_of_the_working_directory_is_taken_for_one_of_pythons(folder: Path) -> None:
    for name in ("queue", "decimal", "filecmp", "brewctl"):  # imported before, and not
        (folder / f"{name}.py").write_text("raise RuntimeError('a file of the working directory')")
    sys.modules.pop("filecmp", None)
    (folder / "mine_careful.py").write_text(f"import queue, decimal, filecmp, brewctl\n{GOOD}")
    assert registry.find("mine_careful:points").group == "loyalty"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine_gone:points", r"there is no module 'mine_gone': is there a mine_gone\.py in /.*\? --app-dir names .*"),
        ("mine_good.more:points", r"there is no module 'mine_good.more': .*"),
        ("mine_good:point", r"module mine_good \(/.*/mine_good\.py\) has no 'point': did you mean mine_good:points"),
        ("mine_good:zzz", r"module mine_good \(/.*\) has no 'zzz': there is points"),
        ("json:zzz", r"module json \(/.*\) has no 'zzz': put @downstream\(…\) above a handler in it"),
        ("mine_good:plain", r'.* is a plain function, and no downstream: put @downstream\("plain"\) above it'),
        ("mine_good:GOOD", r"module mine_good .* has no 'GOOD': there is points"),
        ("mine_good:__name__", r"downstream mine_good:__name__ is of type str, and no downstream: there is points"),
        ("mine_good", r"downstream 'mine_good' is not MODULE:NAME: for example loyalty:points, .*"),
        ("inventroy", r"downstream 'inventroy' is not MODULE:NAME: did you mean inventory"),
        ("mine_good.py:points", r"downstream .* is not MODULE:NAME: write mine_good:points"),
        ("a/b/mine_good.py:points", r"downstream .* is not MODULE:NAME: write mine_good:points --app-dir a/b"),
        (":points", r"downstream ':points' is not MODULE:NAME: .*"),
        ("mine_good:", r"downstream 'mine_good:' is not MODULE:NAME: .*"),
        ("x" * 1000, r"downstream 'x{80}' is not MODULE:NAME: .*"),
    ],
)
def test_what_is_no_downstream(name: str, said: str) -> None:
    assert re.fullmatch(said, refusal(name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_installed", "ModuleNotFoundError: No module named 'not_installed'"),
        ("from os import nothing", r"ImportError: cannot import name 'nothing' from 'os' \(.*\)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one two"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye"),
        ("\ndef f(:", r"SyntaxError: invalid syntax \(line 2 of /.*/mine_bad.py\)"),
    ],
)
def test_a_module_that_raises(folder: Path, text: str, said: str) -> None:
    (folder / "mine_bad.py").write_text(text)
    with pytest.raises(ModuleError) as caught:
        registry.find("mine_bad:points")
    assert re.fullmatch(rf"module mine_bad can't be imported: {said}", caught.value.message)
    assert caught.value.hint == "mend it; `brewctl -v …` has the traceback"


def test_a_group_that_is_none_or_brewctls_own(folder: Path) -> None:
    (folder / "mine_bad.py").write_text(GOOD.replace('"loyalty"', '"bad group"'))
    assert refusal("mine_bad:points").startswith("module mine_bad: downstream 'bad group': no name of a consumer group")
    (folder / "mine_own.py").write_text(GOOD.replace('"loyalty"', '"inventory"'))
    assert refusal("mine_own:points").startswith("mine_own:points: the group inventory is brewctl's own: give it ")


def test_a_folder_that_is_none(folder: Path) -> None:
    assert refusal("mine_good:points", "/nope") == "--app-dir /nope can't be read (no such file or directory)"
    assert refusal("mine_good:points", "mine_good.py") == "--app-dir mine_good.py is no folder"
    (folder / "gone").mkdir()


def test_the_command_line_says_it_in_one_line_and_has_the_traceback(folder: Path) -> None:
    (folder / "mine_bad.py").write_text("def load():\n    return 1 / 0\n\nload()\n")
    for words in (("consume", "mine_bad:points"), ("db", "init", "mine_bad:points"), ("start", "mine_bad:points")):
        said = run(*words)
        line = "brewctl: module mine_bad can't be imported: ZeroDivisionError: division by zero: mend it; "
        assert (said.returncode, said.stdout, said.stderr) == (2, "", f"{line}`brewctl -v …` has the traceback\n")
        told = run("-v", *words)
        assert told.returncode == 2
        assert told.stderr.startswith(line)
        assert f'File "{folder}/mine_bad.py", line 2, in load' in told.stderr
    missing = run("-v", "consume", "mine_gone:points")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1), "a traceback of ours tells nothing"


def test_consume_alone_lists_what_is_configured() -> None:
    shown = run("consume")
    assert (shown.returncode, shown.stdout.splitlines()) == (
        0,
        [
            "inventory      group inventory, takes order.created, order.cancelled",
            "notifications  group notifications, takes order.created, order.cancelled",
        ],
    )


def test_a_schema_in_a_file(folder: Path) -> None:
    found = registry.find("mine_good:points")
    with pytest.raises(UsageError) as caught:
        registration.schema_text(found)
    said = (
        "downstream loyalty: schema points.sql can't be read (no such file or directory): it is looked for beside the"
    )
    assert str(caught.value) == f"{said} module: {folder}/points.sql"
    (folder / "points.sql").write_text("SELECT 1; -- ä")
    assert registration.schema_text(found) == "SELECT 1; -- ä"
    (folder / "points.sql").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="it is not utf-8"):
        registration.schema_text(found)


def test_a_database_of_its_own() -> None:
    assert own_database_variable("my.group-2") == "BREW_MY_GROUP_2_DATABASE_URL"
    settings = Settings(database_url="postgresql://u:hunter2@main/brew")
    found = registry.find("mine_good:points")
    shared = registration.home(settings, found, "mine_good:points")
    assert (shared.database_url, shared.init_command) == (settings.database_url, "brewctl db init mine_good:points")
    assert registration.tables(settings, shared, found) is None
    variable = "BREW_LOYALTY_DATABASE_URL"
    settings = replace(settings, own_databases=(Secret(variable, "postgresql://own/points"),))
    own = registration.home(settings, found, "mine_good:points")
    assert own.database_url == "postgresql://own/points"
    tables = registration.tables(settings, own, found) or frozenset()
    assert {"processed_events", "redeliveries", "downstreams"} <= tables
    assert not {"orders", "outbox", "nodes"} & tables
    with pytest.raises(UsageError) as caught:
        registration.home(
            replace(settings, own_databases=(Secret(variable, "http://u:hunter2@own"),)), found, "mine_good:points"
        )
    assert str(caught.value) == f"{variable} is no PostgreSQL URL: use postgresql://USER@HOST:PORT/NAME"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "2"), "'2' is no number of nodes"),
        (("start", "inventory", "0"), "'0' is no number of nodes"),
        (("start", "inventory", "101"), "'101' is no number of nodes"),
        (("start", "inventory", "2", "3"), "'3' is no number of nodes"),
        (("start", "inventory", "2", "--node", "x"), "--node names a single node"),
        (("start", "inventroy"), "no role 'inventroy': choose among order, publisher, inventory"),
        (("db", "init", "--take-over"), "--take-over needs the MODULE:NAME that is to have its group"),
        (("db", "init", "--reset", "mine_good:points"), "--reset and --print-sql are of the story's tables"),
    ],
)
def test_words_that_do_not_go_together(words: tuple[str, ...], said: str) -> None:
    shown = run(*words)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith(f"brewctl: {said}")
