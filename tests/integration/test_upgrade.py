"""The version before and this one side by side, on one database and one topic, with `db init` in the middle."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from brewctl import overview
from brewctl.client import OrderClient
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.schema import setup
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.roles import inventory, notifications
from tests.conftest import Rig
from tests.integration.kafka_tools import finish
from tests.integration.older_tools import older_nodes, package_of_the_version_before, run_older
from tests.integration.reading import read_topic

EFFECTS = {"inventory": "inventory_reservations", "notifications": "notifications_log"}
NODES = {"inventory": "inventory", "notifications": "notification"}  # their names' stems
SOME = 5
CANCELS = 20


@pytest.fixture
def older(rig: Rig, tmp_path: Path) -> Path:
    """The folder of the version before's package; the rig's database has its tables."""
    folder = package_of_the_version_before(tmp_path / "older")
    rig.connection.execute("DROP SCHEMA public CASCADE")
    rig.connection.execute("CREATE SCHEMA public")
    run_older(folder, "db", "init", env=rig.env)
    assert "outbox.event_type" in setup.missing_tables(rig.connection)
    return folder


@contextlib.contextmanager
def load(node: Node, acknowledged: list[str]) -> Iterator[None]:
    """Orders, one after the other, until the end of the block; each has to be taken."""
    over = threading.Event()

    def create() -> None:
        with OrderClient([node.address]) as client:
            while not over.wait(0.02):
                acknowledged.append(client.create("c1", amount_cents=450, currency="EUR"))

    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(create)
        try:
            yield
        finally:
            over.set()
        creating.result()


def some(count: Callable[..., int], *arguments: object, **named: object) -> bool:
    return count(*arguments, **named) > SOME


def effects_before(rig: Rig, group: str) -> int:
    (count,) = rig.connection.execute(f"SELECT count(*) FROM {EFFECTS[group]}").fetchone() or (0,)
    return int(count)


def published(rig: Rig, node: str, *, by_this_version: bool) -> int:
    """How many rows, written by order nodes of the version before or of this one, a node has published."""
    query = "SELECT count(*) FROM outbox WHERE publisher_node = %s AND (event_type IS NOT NULL) = %s"
    (count,) = rig.connection.execute(query, (node, by_this_version)).fetchone() or (0,)
    return int(count)


def effects(rig: Rig, group: str, number: int, *, by_this_version: bool) -> int:
    """How many orders, written by order nodes of the version before or of this one, have their effect of a node."""
    query = (
        f"SELECT count(*) FROM {EFFECTS[group]} JOIN outbox ON aggregate_id = 'order-' || order_id"
        " WHERE node_id = %s AND (event_type IS NOT NULL) = %s"
    )
    (count,) = rig.connection.execute(query, (f"{NODES[group]}-{number}", by_this_version)).fetchone() or (0,)
    return int(count)


def test_roles_of_both_versions_run_side_by_side(rig: Rig, pool: Pool, older: Path, tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with contextlib.ExitStack() as on_older, contextlib.ExitStack() as on_newer:
        with older_nodes(older):
            older_order, _ = rig.serve("order-1")
            older_consumers = [rig.start(f"{stem}-1", "consume", role) for role, stem in NODES.items()]
        on_older.enter_context(load(older_order, acknowledged))
        for group in EFFECTS:
            rig.wait("effects before", partial(some, effects_before, rig, group))

        done = rig.brewctl("db", "init")
        assert done.returncode == 0, done.stderr

        # Of both versions' order nodes, with the version before's publisher alone.
        newer_order = rig.start("order-2", "serve", "order", "--port", "0", "--no-publisher")
        on_newer.enter_context(load(newer_order, acknowledged))
        rig.wait("newer rows by the older publisher", partial(some, published, rig, "order-1", by_this_version=True))
        assert {node.name: node.publishes for node in overview.nodes(rig.connection) if node.role == "order"} == {
            "order-1": True,
            "order-2": False,
        }
        there = ("--addr", newer_order.address)
        refused = rig.brewctl("cancel-order", acknowledged[0], *there, "--timeout", "1")
        assert "order-1 of an older version does not know cancels" in refused.stderr
        for group, stem in NODES.items():
            rig.start(f"{stem}-2", "consume", group)
            for number in (1, 2):
                for by_this in (False, True):
                    rig.wait(
                        f"effects of {stem}-{number} for orders of {'this' if by_this else 'the older'} version",
                        partial(some, effects, rig, group, number, by_this_version=by_this),
                    )

        # Rows that the version before wrote, and does not publish itself: its publisher is away from Kafka.
        on_older.close()
        assert finish(older_order) == 0
        alone = Nodes(dataclasses.replace(rig.settings, brokers=("127.0.0.1:1",)), logs=tmp_path, on_line=print)
        on_older.enter_context(alone)
        with older_nodes(older):
            older_order = alone.start("order-3", "serve", "order", "--port", "0")
        older_order.wait_ready(timeout_s=60)
        rig.start("publisher-1", "publish")
        with load(older_order, acknowledged):
            for by_this in (False, True):
                rig.wait(
                    "rows of both by the newer publisher",
                    partial(some, published, rig, "publisher-1", by_this_version=by_this),
                )
        assert finish(older_order) == 0
        on_newer.close()

        # The older consumers pass over cancels, which they don't know: those of their partitions are published again.
        cancelled = acknowledged[:: len(acknowledged) // CANCELS]
        assert rig.brewctl("cancel-order", *cancelled, *there, "--timeout", "90", timeout=120).returncode == 0
        rig.wait("cancels in the topic", lambda: rig.counts().outbox_unpublished == 0)
        for node in older_consumers:
            assert finish(node) == 0
    assert rig.brewctl("outbox", "republish", "--missing", "--yes").returncode == 0

    verified = rig.brewctl("verify", "--wait", "60", timeout=180)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    older_headers = published(rig, "order-1", by_this_version=True)
    assert f"{older_headers} published by the version before, without event id and number" in verified.stdout
    assert "published again by `outbox republish`" in verified.stdout
    counts = rig.counts()
    assert len(acknowledged) == len(set(acknowledged)) == counts.orders == counts.reservations == counts.notifications
    released = rig.connection.execute("SELECT count(*) FROM inventory_reservations WHERE released_at IS NOT NULL")
    assert released.fetchone() == (len(cancelled),)
    assert (counts.outbox_unpublished, rig.brewctl("dlq", "list").stdout) == (0, "")
    for downstream in (inventory.DOWNSTREAM, notifications.DOWNSTREAM):
        inbox = Inbox(rig.settings, pool, downstream, node="again")
        inbox.handle(records := read_topic(rig.settings))
        assert (inbox.tally.effects, inbox.tally.skipped) == (0, len(records))
