"""The story, each part with the rights of its role alone; and what each must not do."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from brewctl.delivery.broker import Place, Producer, Record
from brewctl.delivery.orders import refusals
from brewctl.delivery.schema.parts import PARTITION_FUNCTIONS, TABLES
from brewctl.lab.play.nodes import Node, Nodes
from tests.conftest import Rig, run
from tests.integration.rights_tools import Roles, dropped

MODULE = """
from brewctl import Event, OrderCancelled, OrderCreated, downstream

@downstream(
    "loyalty",
    schema='''
        CREATE TABLE IF NOT EXISTS points (place serial, order_id uuid NOT NULL, cancelled bool NOT NULL DEFAULT false);
        CREATE TABLE IF NOT EXISTS "Best customers" (name text PRIMARY KEY, orders int NOT NULL)
    ''',
    done="SELECT order_id FROM points",
)
def points(event: Event[OrderCreated | OrderCancelled], tx):
    if event.type == "order.created":
        tx.execute("INSERT INTO points (order_id) VALUES (%s)", [event.data.order_id])
        tx.execute('INSERT INTO "Best customers" AS b VALUES (%s, 1)'
                   " ON CONFLICT (name) DO UPDATE SET orders = b.orders + 1", [event.data.customer_id])
    else:
        tx.execute("UPDATE points SET cancelled = true WHERE order_id = %s", [event.data.order_id])
"""
NAME = "rights_loyalty:points"
PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relkind = 'r'"
_IDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def roles(rig: Rig, tmp_path: Path) -> Iterator[Roles]:
    tmp_path.joinpath("rights_loyalty.py").write_text(MODULE)
    rig.env |= {"BREW_APP_DIR": str(tmp_path)}
    with dropped(rig) as prefix:
        yield Roles(rig, prefix)


class Story:
    """Nodes and commands, each as the user of its role."""

    def __init__(self, roles: Roles, logs: Path, stack: contextlib.ExitStack, own: str) -> None:
        self.roles, self.rig, self._logs, self._stack, self._own = roles, roles.rig, logs, stack, own

    def env(self, *names: str) -> dict[str, str]:
        env = self.roles.env(*names)
        if self._own:
            url = self.roles.url(*names, database_url=self._own)
            env |= {"BREW_LOYALTY_DATABASE_URL": url, "BREW_INVENTORY_DATABASE_URL": url}
        return env

    def start(self, node: str, *arguments: str, roles: tuple[str, ...]) -> Node:
        settings = dataclasses.replace(self.rig.settings, database_url=self.roles.url(*roles))
        nodes = Nodes(settings, logs=self._logs, on_line=lambda _line: None, env=self.env(*roles))
        started = self._stack.enter_context(nodes).start(node, *arguments)
        started.wait_ready(timeout_s=60)
        return started

    def run(self, role: str, *words: str, code: int = 0) -> str:
        done = run(*words, env=self.env(role), timeout=60)
        assert done.returncode == code, (role, words, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("apart", [False, True], ids=["in-one-database", "own-database"])
def test_the_story_with_the_rights_of_each_role(  # noqa: PLR0915 - one story
    roles: Roles, tmp_path: Path, *, apart: bool
) -> None:
    rig = roles.rig
    rig.env["BREW_DOWNSTREAMS"] = f"inventory,notifications,{NAME}"
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(rig.own_database()) if apart else ""
        if apart:  # one of the story's own shares it
            rig.env |= {"BREW_LOYALTY_DATABASE_URL": own, "BREW_INVENTORY_DATABASE_URL": own}
            assert rig.brewctl("db", "init").stdout.count("tables are ready") == 2
            rig.connection.execute("DROP TABLE inventory_reservations")
        home = stack.enter_context(psycopg.connect(own or rig.settings.database_url, autocommit=True))
        assert rig.brewctl("db", "init", NAME).returncode == 0
        given = rig.brewctl("db", "grants", "--apply", "--exclusive", "--prefix", roles.prefix)
        assert given.returncode == 0, given.stderr
        assert given.stdout.count("rights are given") == 1 + apart
        story = Story(roles, tmp_path / "logs", stack, own)

        # The owner adds what a version before had not: it belongs to the role, and any of its members gives it again.
        rig.connection.execute("DROP TABLE dead_letters_settled")
        rig.connection.execute("ALTER TABLE nodes DROP COLUMN rival")
        assert "permission denied for schema public" in story.run("order", "db", "init", code=1)
        story.run("owner", "db", "init")
        story.run("owner", "db", "init", NAME)
        story.run("owner", "db", "grants", "--apply", "--prefix", roles.prefix)
        owner = rig.connection.execute(
            "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'dead_letters_settled'"
        )
        assert owner.fetchone() == (roles.name("owner"),)

        address = story.start("order-1", "serve", "order", "--port", "0", "--no-publisher", roles=("order",)).address
        story.start("publisher-1", "publish", roles=("publisher",))
        story.start("inventory-1", "consume", "inventory", roles=("inventory",))
        story.start("notification-1", "consume", "notifications", roles=("notifications",))
        loyalty = story.start("loyalty-1", "consume", NAME, roles=("loyalty",))
        made = story.run("reader", "create-order", "--customer", "c1", "--count", "3", "--addr", address)
        first, second, bad = _IDS.findall(made)
        story.run("reader", "cancel-order", first, "--addr", address)
        rig.wait("effects", lambda: home.execute("SELECT count(*) FROM points").fetchone() == (3,))

        # Parked, and redriven.
        home.execute("ALTER TABLE points ADD CONSTRAINT bad CHECK (NOT cancelled) NOT VALID")
        story.run("reader", "cancel-order", bad, "--addr", address)
        rig.wait("a parked event", lambda: home.execute("SELECT count(*) FROM parked_events").fetchone() == (1,))
        home.execute("ALTER TABLE points DROP CONSTRAINT bad")
        (parked,) = [json.loads(line)["id"] for line in story.run("operator", "dlq", "list", "--json").splitlines()]
        assert parked == ("p1@loyalty" if apart else "p1")
        story.run("reader", "dlq", "show", parked)
        story.run("reader", "dlq", "redrive", parked, code=1)
        assert story.run("operator", "dlq", "redrive", parked) == "redriven=1 already=0 refused=0\n"

        # A record that nobody can read is a dead letter of each group.
        _send(rig, b"no order")
        rig.wait("dead letters", lambda: story.run("reader", "dlq", "list", "--json").count("\n") == 3)
        story.run("operator", "dlq", "drop", "--all", "--yes")

        # The same record once more is a repeat; and a row that Kafka never takes is set aside.
        story.run("operator", "outbox", "republish", "1", "--yes")
        asked = "SELECT DISTINCT consumer FROM redeliveries"
        databases = [rig.connection, home]
        rig.wait("a repeat", lambda: len({row for each in databases for row in each.execute(asked)}) == 3)
        rig.connection.execute("SELECT outbox_add(NULL, 'large', 'large', decode(repeat('00', 3000000), 'hex'))")
        rig.wait("a row set aside", lambda: story.run("reader", "outbox", "list", "--failed").count("large") > 0)
        assert story.run("operator", "outbox", "retry", "--all").startswith("back in the queue: ")
        rig.wait("a row set aside again", lambda: story.run("reader", "outbox", "list", "--failed").count("large") > 0)
        rig.connection.execute("DELETE FROM outbox WHERE aggregate_id = 'large'")

        story.run("reader", "verify", "--late", "0")
        assert "finished" in story.run("reader", "trace", second)
        assert "loyalty=3" in story.run("reader", "counts")
        story.run("reader", "groups")
        found = json.loads(_doctor(story, address))["findings"]
        assert {each["check"]: each["verdict"] for each in found}["outbox-ids"] == "ok"
        assert loyalty.alive
        for log in sorted((tmp_path / "logs").iterdir()):
            assert "denied" not in log.read_text(), log.name


def _send(rig: Rig, value: bytes) -> None:
    producer = Producer(rig.settings, node="another-team")
    (outcome,) = producer.send([Record(rig.settings.topic, b"k", value, [])], timeout_s=20)
    assert isinstance(outcome, Place)
    producer.close()


def _doctor(story: Story, address: str) -> str:
    return run("doctor", "--json", "--addr", address, env=story.env("reader"), timeout=60).stdout


MUST_NOT = {
    "order": [
        "SELECT FROM inventory_reservations",
        "SELECT FROM processed_events",
        "DELETE FROM orders",
        "UPDATE orders SET amount_cents = 1",
        "SELECT payload FROM outbox",
        "UPDATE outbox SET payload = '1'",
        "INSERT INTO outbox (aggregate_id, topic, payload, published_at) VALUES ('a', 't', '1', now())",
        "DELETE FROM outbox",
        "DELETE FROM redeliveries",
        "CREATE TABLE mine (a int)",
        "CREATE TEMP TABLE mine (a int)",
        "ALTER TABLE orders ADD COLUMN mine int",
        "TRUNCATE orders",
    ],
    "publisher": [
        "UPDATE outbox SET payload = '1'",
        "UPDATE outbox SET topic = 'mine'",
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('a', 't', '1')",
        "DELETE FROM outbox",
        "SELECT FROM orders",
        "SELECT outbox_add(NULL, 'a', 't', '1')",
        "CREATE TABLE mine (a int)",
    ],
    "inventory": [
        "SELECT FROM orders",
        "UPDATE orders SET status = ''",
        "SELECT FROM outbox",
        "UPDATE outbox SET published_at = NULL",
        "SELECT outbox_add(NULL, 'a', 't', '1')",
        "SELECT FROM notifications_log",
        "DELETE FROM inventory_reservations",
        "UPDATE inventory_reservations SET order_id = gen_random_uuid()",
        "SELECT FROM points",
        "DELETE FROM processed_events",
        "UPDATE processed_events SET consumer = 'notifications'",
        "UPDATE parked_events SET outcome = 'dropped'",
        "SELECT value FROM parked_events",
        "UPDATE downstreams SET name = ''",
        "CREATE TABLE mine (a int)",
    ],
    "loyalty": [
        "SELECT FROM orders",
        "INSERT INTO inventory_reservations (order_id, node_id) VALUES (gen_random_uuid(), '')",
        "UPDATE outbox SET published_at = NULL",
        "ALTER TABLE points ADD COLUMN mine int",
        "TRUNCATE points",
    ],
    "reader": [
        *(f"DELETE FROM {table}" for table in (*TABLES, "points")),
        "UPDATE outbox SET failed_at = NULL",
        "UPDATE nodes SET trouble = ''",
        "SELECT outbox_add(NULL, 'a', 't', '1')",
        "SELECT setval('outbox_id_seq', 1)",
        "CREATE TABLE mine (a int)",
    ],
    "operator": [
        "CREATE TABLE mine (a int)",
        "ALTER TABLE orders ADD COLUMN mine int",
        "TRUNCATE outbox",
        "DELETE FROM outbox",
        "UPDATE outbox SET payload = '1'",
        "SELECT FROM orders",
        "INSERT INTO orders (id) VALUES (gen_random_uuid())",
    ],
    # A user without a role.
    "": ["SELECT 1"],
}


def test_what_each_role_must_not_do_is_refused(roles: Roles) -> None:
    rig = roles.rig
    rig.env["BREW_DOWNSTREAMS"] = f"inventory,notifications,{NAME}"
    untold = rig.brewctl("db", "grants", "--apply", "--prefix", roles.prefix)
    assert untold.stderr.endswith(f"relation points does not exist: run `brewctl db init {NAME}`\n"), "nothing is made"
    assert not roles.has(roles.name("order"))
    assert rig.brewctl("db", "init", NAME).returncode == 0
    assert rig.brewctl("db", "grants", "--apply", "--exclusive", "--prefix", roles.prefix).returncode == 0
    allowed = []
    for role, statements in MUST_NOT.items():
        for statement in statements:
            try:
                with psycopg.connect(roles.url(*[role] * bool(role))) as connection:
                    connection.execute(statement.encode())
                    connection.rollback()
            except (psycopg.errors.InsufficientPrivilege, psycopg.OperationalError) as error:
                if not re.search("denied|must be owner", str(error)):
                    allowed.append((role, str(error)))
            else:
                allowed.append((role, statement))
    assert allowed == []


def test_a_reader_sees_the_transactions_of_other_users(roles: Roles) -> None:
    assert roles.rig.brewctl("db", "grants", "--apply", "--prefix", roles.prefix).returncode == 0
    asked = "SELECT count(xact_start) FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(roles.rig.settings.database_url) as other:
        other.execute("SELECT 1")
        for role, seen in (("reader", 1), ("order", 0)):
            with psycopg.connect(roles.url(role)) as connection:
                assert connection.execute(asked.encode(), [other.info.backend_pid]).fetchone() == (seen,), role


def test_a_command_without_a_right_says_which_in_one_line(roles: Roles) -> None:
    rig = roles.rig
    assert rig.brewctl("db", "grants", "--apply", "--exclusive", "--prefix", roles.prefix).returncode == 0
    order, publisher = roles.env("order"), roles.env("publisher")
    user = f"{roles.prefix}user_order"
    where = f"{rig.connection.info.host}:{rig.connection.info.port}/{rig.connection.info.dbname}"
    hint = "`brewctl db grants` prints what each role needs, and how a user gets it"
    lacks, publishes = (
        f"postgres {where}: user {user} lacks a right: permission denied for table",
        (
            f"postgres user {user} may not SELECT outbox, "
            "UPDATE outbox (published_at, publisher_node, kafka_partition, …), "
            "SELECT publishing (one, node_id, ends_at) and 2 more, as"
        ),
    )
    inbox = (
        f"postgres user {roles.prefix}user_publisher may not "
        "SELECT processed_events (consumer, outbox_id, event_id, …), "
        "INSERT processed_events (consumer, outbox_id, event_id), "
        "UPDATE processed_events (event_id, earlier_ids, processed_at) and 12 more, as downstream inventory has to"
    )
    for words, env, said in (
        (("counts",), order, f"{lacks} inventory_reservations (it has none there)"),
        (("outbox", "list"), order, f"{lacks} outbox (it may only SELECT, INSERT there)"),
        (("publish",), order, f"{publishes} a publisher has to"),
        (("serve", "order", "--port", "0"), order, f"{publishes} an order-service that publishes has to"),
        (("consume", "inventory"), publisher, inbox),
    ):
        done = run(*words, env=env, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"brewctl: {said}: {hint}\n"), words
    done = run("counts", env=roles.env(), timeout=60)
    assert (done.returncode, done.stderr) == (3, f"brewctl: postgres {where} does not let this user connect: {hint}\n")


def test_who_may_not_make_roles_is_told_so_and_makes_nothing(roles: Roles) -> None:
    rig = roles.rig
    rig.connection.execute(f"CREATE ROLE {roles.prefix}nobody LOGIN PASSWORD 'x'".encode())
    url = psycopg.conninfo.make_conninfo(rig.settings.database_url, user=f"{roles.prefix}nobody", password="x")
    done = run("db", "grants", "--apply", "--prefix", roles.prefix, env={**rig.env, "BREW_DATABASE_URL": url})
    assert done.returncode == 1
    assert re.fullmatch(
        rf"brewctl: postgres \S+: user {roles.prefix}nobody may not make these roles and rights: permission denied to "
        r"create role: let a superuser run it, or what it prints without --apply\n",
        done.stderr,
    ), done.stderr
    assert not roles.has(roles.name("order"))


@pytest.mark.parametrize("superuser", [False, True])
def test_whoever_owned_the_tables_so_far_keeps_its_rights(roles: Roles, *, superuser: bool) -> None:
    """A running system goes on while the rights are made: by its own user, or by a superuser."""
    rig = roles.rig
    old = f"{roles.prefix}old"
    rig.connection.execute(f"CREATE ROLE {old} LOGIN CREATEROLE PASSWORD 'x'".encode())
    rig.connection.execute(f'ALTER DATABASE "{rig.connection.info.dbname}" OWNER TO {old}'.encode())
    for table in (*TABLES, *(str(name) for (name,) in rig.connection.execute(PARTITIONS).fetchall())):
        rig.connection.execute(f"ALTER TABLE {table} OWNER TO {old}".encode())
    for function in ("outbox_add", *PARTITION_FUNCTIONS):
        rig.connection.execute(f"ALTER FUNCTION {function} OWNER TO {old}".encode())
    url = psycopg.conninfo.make_conninfo(rig.settings.database_url, user=old, password="x")
    env = {**rig.env, "BREW_DATABASE_URL": rig.settings.database_url if superuser else url}
    for _ in range(2):
        done = run("db", "grants", "--apply", "--exclusive", "--prefix", roles.prefix, env=env)
        assert done.returncode == 0, done.stderr
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM orders")
        connection.execute("ALTER TABLE orders ADD COLUMN more int")
        connection.execute("SELECT outbox_add(NULL, 'a', 't', '1')")


def test_printed_and_run_by_psql_it_is_the_same(roles: Roles) -> None:
    rig = roles.rig
    printed = rig.brewctl("db", "grants", "--prefix", roles.prefix).stdout
    away = {**rig.env, "BREW_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}
    again = run("db", "grants", "--prefix", roles.prefix, env=away).stdout
    assert again.splitlines()[1:] == printed.splitlines()[1:], "it asks no server"
    rights = "SELECT relname::text, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    with psycopg.connect(rig.settings.database_url, autocommit=True) as connection:
        connection.execute(printed.encode())
        by_hand = connection.execute(rights.encode()).fetchall()
        assert rig.brewctl("db", "grants", "--apply", "--prefix", roles.prefix).returncode == 0
        assert connection.execute(rights.encode()).fetchall() == by_hand
        # What was given beside it is taken away.
        connection.execute(f"GRANT ALL ON orders TO {roles.name('reader')}, PUBLIC".encode())
        assert rig.brewctl("db", "grants", "--apply", "--prefix", roles.prefix).returncode == 0
        assert connection.execute(rights.encode()).fetchall() == by_hand


@pytest.mark.parametrize("prefix", ["", "pg_", "Brew_", "a b", "x" * 31, "a;"])
def test_a_prefix_that_begins_no_role_is_refused(prefix: str) -> None:
    done = run("db", "grants", "--prefix", prefix)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"brewctl: --prefix {prefix[:40]!r} can't begin a role's name: "
        "use up to 30 lower-case letters, digits and '_', not 'pg_'\n"
    )


def test_a_right_that_is_missing_is_no_order_s_fault_and_a_trigger_that_says_so_is(roles: Roles) -> None:
    assert roles.rig.brewctl("db", "grants", "--apply", "--prefix", roles.prefix).returncode == 0
    with psycopg.connect(roles.url("reader"), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as denied:
            connection.execute("DELETE FROM orders")
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as raised:
            connection.execute("DO $$ BEGIN RAISE 'not you' USING ERRCODE = 'insufficient_privilege'; END $$")
    assert not refusals.never_taken(denied.value), "it is tried again once the right is given"
    assert refusals.never_taken(raised.value)
