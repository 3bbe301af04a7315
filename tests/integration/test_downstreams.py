"""Downstreams of a user's own, from their tables to running nodes that are killed."""

import contextlib
import dataclasses
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from brewctl.config import environment
from brewctl.delivery import database
from brewctl.errors import BrewError
from brewctl.lab.play import background
from brewctl.lifecycle import wait_until
from brewctl.sql import queries
from tests.conftest import Rig, begin, run

EXAMPLES = str(Path(__file__).parents[2] / "examples")
SOURCE = """
from brewctl import Event, OrderCreated, downstream

@downstream("{group}", schema={schema!r})
def {name}(event: Event[OrderCreated], tx):
    tx.execute("INSERT INTO seen VALUES (%s, '{mark}')", [event.data.order_id])
"""
SEEN = "CREATE TABLE IF NOT EXISTS seen (order_id uuid PRIMARY KEY, mark text)"


def write(folder: Path, *, name: str = "first", group: str = "", schema: str = SEEN, mark: str = "a") -> str:
    """Write a downstream's module, and return how it is called."""
    folder.joinpath("mine.py").write_text(SOURCE.format(group=group or "mine", schema=schema, name=name, mark=mark))
    return f"mine:{name}"


@pytest.fixture
def own_url(rig: Rig) -> Iterator[str]:
    """A database beside the rig's."""
    with rig.own_database() as url:
        yield url


def complaint(rig: Rig, *words: str, code: int = 1, env: dict[str, str] | None = None) -> str:
    said = run(*words, env={**rig.env, **(env or {})}, timeout=30)
    assert (said.returncode, said.stdout) == (code, ""), said.stderr
    assert said.stderr.count("\n") == 1, said.stderr
    return said.stderr.removeprefix("brewctl: ").rstrip("\n")


def create(rig: Rig, count: int) -> None:
    _, address = rig.serve()
    created = rig.brewctl("create-order", "--customer", "c1", "--count", str(count), "--addr", address)
    assert created.returncode == 0, created.stderr


def test_both_examples_with_a_kill_amid_the_load(rig: Rig) -> None:
    app = ("--app-dir", EXAMPLES)
    made = rig.brewctl("db", "init", "loyalty:points", "revenue:daily", *app)
    assert made.returncode == 0, made.stderr
    again = rig.brewctl("db", "init", "loyalty:points", "revenue:daily", *app)
    assert again.stdout == made.stdout, "not safe to do twice"

    timeout = ("--session-timeout", "3")
    rig.start("revenue-1", "consume", "revenue:daily", *app, *timeout)
    victims = [
        rig.start("loyalty-1", "consume", "loyalty:points", *app, *timeout),
        rig.start("revenue-2", "consume", "revenue:daily", *app, *timeout),
    ]
    _, address = rig.serve()
    rig.serve("order-2")
    load = begin("load", "--orders", "3000", "--addr", address, env=rig.env)
    for victim, table in zip(victims, ("points", "revenue_orders"), strict=True):
        wait_until("effects", lambda table=table: _count(rig, table) > 300, timeout_s=60)  # type: ignore[misc]
        victim.kill()
    rig.start("loyalty-2", "consume", "loyalty:points", *app, *timeout)
    _, problem = load.communicate(timeout=120)
    assert load.returncode == 0, problem

    orders = rig.counts().orders
    assert orders >= 3000
    rig.wait("all effects", lambda: _count(rig, "points") == _count(rig, "revenue_orders") == orders)
    # A batch that came again would have been counted again here: the table only adds up.
    sums = "SELECT sum(orders), sum(amount_cents) FROM daily_revenue"
    truth = "SELECT count(*), sum(amount_cents) FROM orders"
    assert rig.connection.execute(sums).fetchone() == rig.connection.execute(truth).fetchone()
    given = "SELECT count(*) FROM points JOIN orders ON id = order_id AND points = amount_cents / 100"
    assert rig.connection.execute(given).fetchone() == (orders,)
    taken = "SELECT consumer, count(*) FROM processed_events GROUP BY consumer ORDER BY consumer"
    assert rig.connection.execute(taken).fetchall() == [("loyalty", orders), ("revenue", orders)]


def _count(rig: Rig, table: str) -> int:
    (found,) = rig.connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
    return int(found)


def test_a_database_of_its_own(rig: Rig, own_url: str, tmp_path: Path) -> None:
    name, app = write(tmp_path), ("--app-dir", str(tmp_path))
    env = {**rig.env, "BREW_MINE_DATABASE_URL": own_url}
    with psycopg.connect(own_url, autocommit=True) as own:
        said = complaint(rig, "consume", name, *app, env=env)
        assert re.fullmatch(r"missing in postgres: processed_events, .*: run `brewctl db init mine:first`", said)
        made = run("db", "init", name, *app, env=env)
        assert made.returncode == 0, made.stderr
        tables = {
            row[0] for row in own.execute("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND oid > 16383")
        }
        assert {"seen", "processed_events", "redeliveries", "downstreams"} <= tables
        assert not tables & {"orders", "outbox", "nodes", "inventory_reservations"}
        # Both know whose the group is: in another database, another downstream would share its partitions.
        assert [
            connection.execute("SELECT name FROM downstreams").fetchall() for connection in (own, rig.connection)
        ] == [
            [(name,)],
            [(name,)],
        ]
        write(tmp_path, name="second")
        for words in (("db", "init"), ("consume",)):
            assert "the group mine is taken by mine:first" in complaint(rig, *words, "mine:second", *app)
        write(tmp_path)

        create(rig, 5)
        consumer = begin("consume", name, *app, "--node", "mine-1", env=env)
        try:
            wait_until("effects", lambda: own.execute("SELECT count(*) FROM seen").fetchone() == (5,), timeout_s=60)
            assert own.execute("SELECT count(*) FROM processed_events").fetchone() == (5,)
            assert _count(rig, "processed_events") == 0
            # Who looks on finds it where all others are.
            seen = "SELECT effects FROM nodes WHERE node_id = 'mine-1' AND role = 'mine'"
            rig.wait("its row", lambda: rig.connection.execute(seen).fetchone() == (5,))
        finally:
            consumer.send_signal(signal.SIGTERM)
            output, _ = consumer.communicate(timeout=60)
        assert output.endswith("[mine-1] mine stopped. processed=5 done=5 skipped=0\n")


def test_it_works_on_without_the_storys_database(rig: Rig, own_url: str, tmp_path: Path) -> None:
    name, app = write(tmp_path), ("--app-dir", str(tmp_path))
    env = {**rig.env, "BREW_MINE_DATABASE_URL": own_url}
    create(rig, 3)
    rig.wait("the topic", lambda: rig.counts().outbox_unpublished == 0)
    away = {**env, "BREW_DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}
    made = run("db", "init", name, *app, env=away)
    assert made.returncode == 0, made.stderr
    assert "db init could not register the group mine in the story's database (postgres 127.0.0.1:1/d " in made.stderr
    consumer = begin("consume", name, *app, env=away)
    try:
        with psycopg.connect(own_url, autocommit=True) as own:
            wait_until("effects", lambda: own.execute("SELECT count(*) FROM seen").fetchone() == (3,), timeout_s=60)
    finally:
        consumer.send_signal(signal.SIGTERM)
        consumer.communicate(timeout=60)
    assert consumer.returncode == 0


def test_a_group_is_one_downstreams(rig: Rig, tmp_path: Path) -> None:
    app = ("--app-dir", str(tmp_path))
    first = write(tmp_path)
    line = complaint(rig, "consume", first, *app)
    assert line == "downstream mine:first has no tables yet: run `brewctl db init mine:first`"
    assert complaint(rig, "start", first, *app) == line
    assert rig.brewctl("db", "init", first, *app).returncode == 0

    second = write(tmp_path, name="second", schema="CREATE TABLE others ()")
    taken = (
        "the group mine is taken by mine:first: give mine:second another group; "
        "if it is the same one under a new name, `brewctl db init --take-over mine:second`"
    )
    assert complaint(rig, "consume", second, *app) == taken
    assert complaint(rig, "db", "init", second, *app) == taken
    assert rig.connection.execute("SELECT to_regclass('others')").fetchone() == (None,), "its schema was run"

    assert rig.brewctl("db", "init", "--take-over", second, *app).returncode == 0
    assert rig.connection.execute("SELECT consumer, name FROM downstreams").fetchall() == [("mine", second)]
    assert complaint(rig, "consume", write(tmp_path), *app).startswith("the group mine is taken by mine:second: ")

    own = write(tmp_path, group="notifications")
    for words in (("consume",), ("db", "init"), ("db", "init", "--take-over")):
        assert "the group notifications is brewctl's own" in complaint(rig, *words, own, *app, code=2)


def test_plain_init_registers_the_storys_own(rig: Rig) -> None:
    rig.connection.execute("DROP TABLE downstreams")  # as in a database of the version before
    assert rig.brewctl("db", "init").returncode == 0
    names = rig.connection.execute("SELECT consumer, name FROM downstreams ORDER BY consumer").fetchall()
    assert names == [(name, f"brewctl.roles.{name}:DOWNSTREAM") for name in ("inventory", "notifications")]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("CREATE TABLEX a ()", 'syntax error at or near "TABLEX"'),
        (f"{SEEN};\n\nCREATE TABLE b (c nothing)", r'refused its schema (line 3): type "nothing" does not exist'),
        (f"{SEEN}; SELECT 1 / 0", "division by zero"),
        ("CREATE INDEX CONCURRENTLY i ON orders (id)", "cannot run inside a transaction block"),
    ],
)
def test_a_schema_that_postgres_refuses(rig: Rig, tmp_path: Path, schema: str, said: str) -> None:
    name = write(tmp_path, schema=schema)
    line = complaint(rig, "db", "init", name, "--app-dir", str(tmp_path))
    assert line.startswith("downstream mine: postgres refused its schema")
    assert said in line
    assert line.endswith(": mend `schema` of mine:first; nothing of it was made")
    assert rig.connection.execute("SELECT to_regclass('seen')").fetchone() == (None,)
    assert _count(rig, "downstreams") == 0


def test_a_schema_of_several_statements_beside_a_table_in_use(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_text(
        f"-- what it has seen\n{SEEN};\nALTER TABLE seen ADD COLUMN IF NOT EXISTS at date;"
    )
    name, app = write(tmp_path, schema="mine.sql"), ("--app-dir", str(tmp_path))
    assert rig.brewctl("db", "init", name, *app).returncode == 0
    with psycopg.connect(rig.settings.database_url) as user:
        user.execute("SELECT count(*) FROM seen")
        waiting = begin("db", "init", name, *app, env=rig.env)
        asks = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'seen'::regclass"
        wait_until("a wait for the table", lambda: rig.connection.execute(asks).fetchone() == (1,), timeout_s=60)
        # Statements of others queue behind it: it gives way after a fraction of a second.
        wait_until("a pause", lambda: rig.connection.execute(asks).fetchone() == (0,), timeout_s=60)
        rig.connection.execute("SELECT count(*) FROM seen")
        assert waiting.poll() is None
    _, problem = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, problem


def test_one_makes_tables_at_a_time(rig: Rig, tmp_path: Path) -> None:
    name = write(tmp_path)
    with psycopg.connect(rig.settings.database_url) as other:
        other.execute(queries["lock_schema"])
        at_once = [begin("db", "init", name, "--app-dir", str(tmp_path), env=rig.env) for _ in range(3)]
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until("a wait", lambda: rig.connection.execute(waiting).fetchone() == (True,), timeout_s=60)
        assert rig.connection.execute("SELECT to_regclass('seen')").fetchone() == (None,)
    for each in at_once:
        _, problem = each.communicate(timeout=120)
        assert each.returncode == 0, problem


def test_a_table_that_is_gone_is_said_with_what_makes_it(rig: Rig) -> None:
    settings = dataclasses.replace(rig.settings, init_command="brewctl db init mine:first")
    with (
        pytest.raises(BrewError, match="relation seen does not exist: run `brewctl db init mine:first`"),
        database.connect(settings) as connection,
    ):
        connection.execute("SELECT FROM seen")


def test_a_change_of_its_file_starts_it_again(rig: Rig, tmp_path: Path) -> None:
    name, app = write(tmp_path, mark="a"), ("--app-dir", str(tmp_path))
    assert rig.brewctl("db", "init", name, *app).returncode == 0
    _, address = rig.serve()

    def order() -> None:
        assert rig.brewctl("create-order", "--customer", "c1", "--addr", address).returncode == 0

    def marks() -> list[str]:
        return [mark for (mark,) in rig.connection.execute("SELECT mark FROM seen ORDER BY mark")]

    node = rig.start("mine-1", "consume", name, *app, "--watch")
    order()
    rig.wait("the first form", lambda: marks() == ["a"])
    write(tmp_path, mark="bb")
    rig.wait("a second start", lambda: sum("partitions assigned" in line for line in node.lines) == 2)
    assert "[mine-1] mine stopped. processed=1 done=1 skipped=0" in node.lines
    assert node.lines[-2] == "[mine-1] its file has changed: starts again"
    order()
    rig.wait("the second form", lambda: marks() == ["a", "bb"])

    tmp_path.joinpath("mine.py").write_text("def f(:")
    rig.wait("the error", lambda: "waits for a change of it" in node.log.read_text())
    assert "brewctl: module mine can't be imported: SyntaxError: " in node.log.read_text()
    order()
    write(tmp_path, mark="ccc")
    rig.wait("the third form", lambda: marks() == ["a", "bb", "ccc"])
    assert node.alive
    assert (rig.nodes.stop(), node.process.returncode) == ([], 0)


def test_in_the_background(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    env = {**environment(rig.settings), "BREW_HOME": str(home)}
    work = tmp_path / "work"
    work.mkdir()
    name = write(work)
    with work.joinpath("mine.py").open("a") as module:
        module.write("\nimport os\nprint('works in', os.getcwd(), flush=True)\n")
    monkeypatch.chdir(work)
    assert run("db", "init", name, env=env).returncode == 0
    try:
        started = run("start", name, "2", env=env)
        assert started.returncode == 0, started.stderr
        assert [line.split()[0] for line in started.stdout.splitlines()] == ["works", "node", "mine-1", "mine-2"]
        shown = run("status", env=env).stdout
        assert all(re.search(rf"^mine-{number} .* runs ", shown, re.MULTILINE) for number in (1, 2))
        create(rig, 4)
        rig.wait("effects", lambda: _count(rig, "seen") == 4)
        logs = run("logs", "mine-1", env=env).stdout
        assert f"works in {work}" in logs
        assert "[mine-1] partitions assigned [" in logs
    finally:
        stopped = run("stop", "--all", env=env)
        for node in background.nodes(home).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGKILL)
    assert stopped.returncode == 0, stopped.stderr
    assert re.fullmatch(r"(\[mine-[12]\] mine stopped\. processed=\d done=\d skipped=0\n){2}", stopped.stdout)
