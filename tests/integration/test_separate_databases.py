"""A database for each service: the story played that way, what each tool says of it, and one database that is away."""

import contextlib
import dataclasses
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from brewctl import overview
from brewctl.config import SHORT_NAMES, environment, own_database_variable
from brewctl.lab.play.nodes import Nodes
from brewctl.security import Secret
from tests.conftest import Rig

ORDERS = 200
INBOX = {"downstreams", "parked_events", "processed_events", "redeliveries"}
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class Services:
    """A rig whose two downstreams have databases of their own; the story's has none of their tables."""

    rig: Rig
    own: dict[str, psycopg.Connection[Any]]  # by the downstream's name

    def name(self, service: str) -> str:
        return self.own[service].info.dbname

    def count(self, service: str, table: str) -> int:
        (count,) = self.own[service].execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
        return int(count)

    def orders(self, count: int, *addresses: str) -> list[str]:
        flags = [word for address in addresses for word in ("--addr", address)]
        made = self.rig.brewctl("create-order", "--customer", "c1", "--count", str(count), *flags)
        assert made.returncode == 0, made.stderr
        return ID.findall(made.stdout)

    def broken(self) -> dict[str, int]:
        said = self.rig.brewctl("verify", "--json", "--late", "0")
        assert said.stdout, said.stderr
        return {each["name"]: each["violations"] for each in json.loads(said.stdout)["checks"] if each["violations"]}

    def findings(self) -> dict[str, dict[str, str]]:
        return {each["check"]: each for each in json.loads(self.rig.brewctl("doctor", "--json").stdout)["findings"]}

    @contextlib.contextmanager
    def away(self, service: str) -> Iterator[None]:
        """Let nobody into a service's database while the block runs, and end who is there."""
        name, control = self.name(service), self.rig.connection
        control.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        try:
            control.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            control.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())

    @contextlib.contextmanager
    def story_closed(self) -> Iterator[None]:
        """Let nobody new into the story's database while the block runs."""
        name, control = self.rig.connection.info.dbname, self.own["inventory"]
        control.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        try:
            yield
        finally:
            control.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


@pytest.fixture
def bare(rig: Rig, tmp_path: Path) -> Iterator[Services]:
    """The databases are there, and have no tables yet."""
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(rig.own_database()) for name in SHORT_NAMES}
        rig.connection.execute("DROP TABLE inventory_reservations, notifications_log")
        rig.settings = dataclasses.replace(
            rig.settings,
            own_databases=tuple(Secret(own_database_variable(name), url) for name, url in urls.items()),
        )
        rig.env = environment(rig.settings)
        own = {name: stack.enter_context(psycopg.connect(url, autocommit=True)) for name, url in urls.items()}
        stack.callback(rig.databases.close)
        rig.nodes = stack.enter_context(Nodes(rig.settings, logs=tmp_path / "logs", on_line=lambda _line: None))
        yield Services(rig, own)


@pytest.fixture
def services(bare: Services) -> Services:
    made = bare.rig.brewctl("db", "init")
    assert made.returncode == 0, made.stderr
    return bare


def test_two_hundred_orders_survive_a_kill(services: Services) -> None:
    rig = services.rig
    short = ("--session-timeout", "3")
    addresses = [rig.serve(name)[1] for name in ("order-1", "order-2")]
    inventory_1 = rig.start("inventory-1", "consume", "inventory", *short)
    rig.start("inventory-2", "consume", "inventory", *short)
    rig.start("notification-1", "consume", "notifications")
    ids = services.orders(ORDERS // 2, *addresses)
    inventory_1.kill()
    ids += services.orders(ORDERS // 2, *addresses)
    assert inventory_1.process.returncode == -signal.SIGKILL
    assert rig.brewctl("cancel-order", ids[0], "--addr", addresses[0]).returncode == 0

    done = overview.Counts(ORDERS, 0, ORDERS, ORDERS)
    rig.wait(f"{done}", lambda: rig.counts() == done and not overview.unfinished(rig.databases))
    assert overview.missing(rig.connection, ids) == []
    line = f"counts: orders={ORDERS} outbox_unpublished=0 reservations={ORDERS} notifications={ORDERS}\n"
    assert rig.brewctl("counts").stdout == line
    shares = json.loads(rig.brewctl("counts", "--json").stdout)["inventory_distribution"]
    assert sum(shares.values()) == ORDERS
    assert shares["inventory-2"] > 0
    work = overview.work_by_node(rig.databases)
    assert work["order-1"] + work["order-2"] == ORDERS + 1
    assert (work["inventory-2"], work["notification-1"]) == (shares["inventory-2"], ORDERS)
    assert rig.nodes.stop() == []

    verified = rig.brewctl("verify", "--late", "0")
    assert verified.returncode == 0, verified.stdout
    assert "every order was published, reserved and notified exactly once" in " ".join(verified.stdout.split())
    assert re.search(rf"inventory-missing .* {ORDERS} +0\n", verified.stdout)
    traced = rig.brewctl("trace", ids[0])
    assert "ms  released   by group inventory" in traced.stdout, traced.stderr
    assert "finished" in traced.stdout
    found = services.findings()
    assert {found[f"database-{name}"]["verdict"] for name in SHORT_NAMES} == {"ok"}
    assert {found[name]["verdict"] for name in ("schema", "outbox-ids", "records", "parked", "deployment")} == {"ok"}
    assert rig.brewctl("outbox", "republish", "--missing", "--dry-run").stdout == "missing=0\n"
    metrics = rig.brewctl("metrics", "--once").stdout
    assert 'brew_up{server="postgres-inventory"} 1.0' in metrics
    assert 'brew_parked_events{consumer="notifications"} 0.0' in metrics, metrics

    # Each has its own, and nothing of the others.
    assert rig.connection.execute("SELECT count(*) FROM processed_events").fetchone() == (0,)
    assert services.count("inventory", "processed_events") == ORDERS + 1
    services.own["inventory"].execute("DELETE FROM inventory_reservations WHERE order_id = %s", [ids[1]])
    assert services.broken() == {"inventory-missing": 1, "inventory-dedup": 1}
    assert [str(each.order_id) for each in overview.unfinished(rig.databases)] == [ids[1]]
    services.own["inventory"].execute("UPDATE processed_events SET outbox_id = outbox_id + 10000")
    said = services.findings()["outbox-ids"]
    assert said["verdict"] == "warn", "the ids that a downstream processed in its own database were not looked at"


def test_orders_and_the_neighbour_go_on_while_one_database_is_away(services: Services) -> None:
    rig = services.rig
    _, address = rig.serve()
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    with services.away("inventory"):
        order, *_ = services.orders(3, address)
        rig.wait("the neighbour", lambda: services.count("notifications", "notifications_log") == 3)
        said = rig.brewctl("counts")
        assert (said.returncode, said.stdout) == (3, "counts: orders=3 outbox_unpublished=0 notifications=3\n")
        whose = (
            f"brewctl: downstream inventory: postgres 127.0.0.1:{rig.connection.info.port}/{services.name('inventory')}"
        )
        assert said.stderr.startswith(whose), said.stderr
        assert said.stderr.rstrip().endswith("or correct BREW_INVENTORY_DATABASE_URL")
        shown = json.loads(rig.brewctl("counts", "--json").stdout)
        assert (shown["reservations"], shown["notifications"]) == (None, 3)
        traced = rig.brewctl("trace", order)
        assert (traced.returncode, traced.stderr.splitlines()[-1][: len(whose)]) == (3, whose)
        assert "ms  notified" in traced.stdout
        assert "whether it is reserved by group inventory is not known" in " ".join(traced.stdout.split())
        verified = rig.brewctl("verify")
        assert (verified.returncode, verified.stderr[: len(whose)]) == (3, whose)
        found = services.findings()
        assert (found["database-inventory"]["verdict"], found["database-notifications"]["verdict"]) == ("fail", "ok")
        assert found["postgres"]["verdict"] == "ok"
        metrics = rig.brewctl("metrics", "--once")
        assert 'brew_up{server="postgres-inventory"} 0.0' in metrics.stdout
        assert 'brew_up{server="postgres-notifications"} 1.0' in metrics.stdout
        again = rig.brewctl("db", "init")
        assert (again.returncode, again.stdout.count("tables are ready")) == (3, 2), again.stderr
    rig.wait("its effects", lambda: rig.counts() == overview.Counts(3, 0, 3, 3))
    assert rig.nodes.stop() == []
    assert services.broken() == {}


def test_a_downstream_starts_and_works_while_the_orders_database_is_away(services: Services) -> None:
    rig = services.rig
    _, address = rig.serve()
    services.orders(3, address)
    rig.wait("the topic", lambda: rig.counts().outbox_unpublished == 0)
    services.own["inventory"].execute(
        "INSERT INTO redeliveries (consumer, node_id, outbox_ids, came_at)"
        " VALUES ('inventory', 'inventory-1', '{1}', now() - interval '8 days')"
    )
    with services.story_closed():
        assert rig.brewctl("counts").returncode == 3
        node = rig.start("inventory-1", "consume", "inventory")
        rig.wait("its effects", lambda: services.count("inventory", "inventory_reservations") == 3)
        rig.wait("old redeliveries to be forgotten", lambda: services.count("inventory", "redeliveries") == 0)
        node.process.send_signal(signal.SIGTERM)
        assert node.ended(within_s=30) == 0
    assert "processed=3 reserved=3 skipped=0" in node.lines[-1]


def test_each_database_has_the_tables_of_its_service_alone(services: Services) -> None:
    rig = services.rig
    asked = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    for name, own in {"inventory": "inventory_reservations", "notifications": "notifications_log"}.items():
        there = {table for (table,) in services.own[name].execute(asked.encode())}
        assert there >= {*INBOX, own}
        assert not there & {"orders", "outbox", "nodes", "inventory_reservations", "notifications_log"} - {own}
        assert services.own[name].execute("SELECT consumer FROM downstreams").fetchall() == [(name,)]
    story = {table for (table,) in rig.connection.execute(asked.encode())}
    assert not story & {"inventory_reservations", "notifications_log"}

    for name in SHORT_NAMES:
        services.own[name].execute("INSERT INTO processed_events (consumer, outbox_id) VALUES (%s, 1)", [name])
    emptied = rig.brewctl("db", "init", "--reset")
    assert emptied.returncode == 2
    assert all(services.name(name) in emptied.stderr for name in SHORT_NAMES), emptied.stderr
    assert rig.brewctl("db", "init", "--reset", "--yes").stdout.count("tables are empty in ") == 3
    assert [services.count(name, "processed_events") for name in SHORT_NAMES] == [0, 0]


def test_one_without_its_tables_says_what_makes_them(bare: Services) -> None:
    rig = bare.rig
    rig.serve()
    for words in (("consume", "inventory"), ("start", "inventory"), ("counts",)):
        said = rig.brewctl(*words)
        assert said.returncode == 1, words
        assert said.stderr.rstrip().endswith("run `brewctl db init`"), (words, said.stderr)
    alone = rig.brewctl("db", "init", "inventory")
    assert (alone.returncode, bare.name("inventory") in alone.stdout) == (0, True), alone.stderr
    rig.start("inventory-1", "consume", "inventory")


def test_what_is_parked_in_a_database_of_its_own_is_redriven_there(services: Services) -> None:
    rig, inventory = services.rig, services.own["inventory"]
    _, address = rig.serve()
    rig.start("inventory-1", "consume", "inventory")
    inventory.execute("ALTER TABLE inventory_reservations ADD CONSTRAINT bad CHECK (node_id <> 'inventory-1')")
    services.orders(1, address)
    rig.wait("a parked event", lambda: services.count("inventory", "parked_events") == 1)
    inventory.execute("ALTER TABLE inventory_reservations DROP CONSTRAINT bad")
    # As it is left behind where the service has moved out.
    rig.connection.execute(
        'INSERT INTO parked_events (consumer, key, seq, outbox_id, event_type, topic, "partition", "offset",'
        " written_ms, value, headers, reason, attempts)"
        " VALUES ('inventory', 'k', 1, 77, 'order.created', 't', 0, 0, 0, '', '[]', 'before it moved', 1)"
    )
    assert "parked=1: see `brewctl dlq list`" in rig.brewctl("counts").stdout
    assert services.findings()["parked"]["found"] == "inventory has parked 1 event of 1 key, whose effect failed"
    assert rig.brewctl("dlq", "redrive", "p1@inventory").stdout == "redriven=1 already=0 refused=0\n"
    assert services.count("inventory", "inventory_reservations") == 1
