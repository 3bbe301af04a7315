"""The primary is lost and its standby promoted, by real streaming replication, while orders flow."""

import contextlib
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psycopg
import pytest

from brewctl.client import OrderClient
from brewctl.config import Settings, environment
from brewctl.delivery import database, topics
from brewctl.delivery.broker import open_admin
from brewctl.errors import BrewError, UnreachableError
from brewctl.lab.nodes import Node, Nodes
from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2, orders_pb2_grpc
from tests.conftest import run
from tests.integration.grpc_tools import order
from tests.integration.postgres_pair import Instance, Pair, replicated

WAIT_S = 120
# A sequence is logged so many numbers ahead: a standby that lags by less goes on behind what the primary gave out.
LOGGED_AHEAD = 32
EFFECTS = ("inventory_reservations", "notifications_log")


@dataclass
class Flow:
    """The story's roles on a pair of servers, and who was promised what."""

    pair: Pair
    settings: Settings
    nodes: Nodes
    addresses: list[str] = field(default_factory=list)

    def start(self, name: str, *command: str) -> Node:
        node = self.nodes.start(name, *command)
        node.wait_ready(timeout_s=WAIT_S)
        if node.address:
            self.addresses.append(node.address)
        return node

    def start_consumers(self) -> list[Node]:
        started = [
            self.nodes.start("inventory-1", "consume", "inventory", "--session-timeout", "6"),
            self.nodes.start("inventory-2", "consume", "inventory", "--session-timeout", "6"),
            self.nodes.start("notification-1", "consume", "notifications", "--session-timeout", "6"),
        ]
        for node in started:
            node.wait_ready(timeout_s=WAIT_S)
        return started

    def create(self, count: int) -> set[str]:
        """Make so many orders, each acknowledged."""
        with OrderClient(self.addresses, timeout_s=WAIT_S) as client:
            return {client.create("c1", amount_cents=450, currency="EUR") for _ in range(count)}

    def settle(self, server: Instance, orders: set[str]) -> None:
        """Wait until each of these orders has both its effects on a server."""

        def missing() -> set[str]:
            with psycopg.connect(server.url) as connection:
                rows = [set(connection.execute(f"SELECT order_id::text FROM {each}".encode())) for each in EFFECTS]
            return orders - {order_id for (order_id,) in rows[0] & rows[1]}

        wait_until("every effect", lambda: not missing(), timeout_s=WAIT_S)

    def replicate(self) -> None:
        """Wait until the standby has all that the primary has."""
        wanted = self.pair.primary.ask("SELECT pg_current_wal_flush_lsn()")
        query = f"SELECT pg_last_wal_replay_lsn() >= '{wanted}'"
        wait_until("a standby that has all", lambda: self.pair.standby.ask(query) is True, timeout_s=WAIT_S)

    def brewctl(self, *arguments: str) -> tuple[int, str]:
        done = run(*arguments, env=environment(self.settings), timeout=240)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def flow(servers: dict[str, str], tmp_path: Path) -> Iterator[Flow]:
    with replicated() as pair:
        settings = Settings(
            database_url=pair.url,
            brokers=tuple(servers["BREW_KAFKA_BROKERS"].split(",")),
            topic=f"failover-{uuid.uuid4().hex[:12]}",
            group_prefix=f"{uuid.uuid4().hex[:8]}-",
        )
        topics.create(settings)
        with database.connect(settings) as connection:
            database.initialize(connection)
        try:
            with Nodes(settings, logs=tmp_path / "logs", on_line=lambda _line: None) as nodes:
                yield Flow(pair, settings, nodes)
        finally:
            with open_admin(settings) as admin:
                for topic in (settings.topic, settings.dead_letter_topic):
                    admin.delete_topic(topic)


@contextlib.contextmanager
def clients(addresses: Sequence[str], *, count: int) -> Iterator[set[str]]:
    """So many clients make orders while the block runs. Yields the orders that were acknowledged."""
    acknowledged: set[str] = set()
    failures: list[BaseException] = []
    over = threading.Event()

    def work(client: OrderClient) -> None:
        try:
            while not over.is_set():
                acknowledged.add(client.create("c1", amount_cents=450, currency="EUR"))
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    with OrderClient(addresses, timeout_s=WAIT_S) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield acknowledged
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert not failures, failures


def test_no_acknowledged_order_is_lost_with_synchronous_replication(flow: Flow) -> None:
    pair = flow.pair
    pair.replicate_synchronously()
    roles = [flow.start(f"order-{number}", "serve", "order", "--port", "0") for number in (1, 2)]
    roles += [flow.start("publisher-1", "publish"), *flow.start_consumers()]
    with clients(flow.addresses, count=4) as acknowledged:
        wait_until("orders", lambda: len(acknowledged) >= 100, timeout_s=WAIT_S)
        pair.fail_over()
        before = len(acknowledged)
        wait_until("orders on the new primary", lambda: len(acknowledged) >= before + 100, timeout_s=WAIT_S)
    flow.settle(pair.standby, acknowledged)
    assert all(node.alive for node in roles)
    code, said = flow.brewctl("verify", "--wait", "60")
    assert code == 0, said
    orders = pair.standby.ask("SELECT count(*) FROM orders")
    for table in EFFECTS:
        assert pair.standby.ask(f"SELECT count(*) FROM {table}") == orders


def test_a_retry_acknowledges_no_order_that_the_standby_does_not_have(flow: Flow) -> None:
    """A commit that waits for the standby is given up, and is there all the same, on the primary alone."""
    flow.pair.replicate_synchronously()
    node = flow.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    flow.pair.cut()
    request = order(idempotency_key="once")
    with grpc.insecure_channel(node.address) as channel:
        create = orders_pb2_grpc.OrderServiceStub(channel).Create

        def is_there() -> bool:
            return flow.pair.primary.ask("SELECT count(*) FROM orders") == 1

        for _ in range(2):  # the second one finds it
            with pytest.raises(grpc.RpcError):
                create(request, timeout=10)
            wait_until("an order on the primary alone", is_there, timeout_s=WAIT_S)
        flow.pair.fail_over()
    assert flow.pair.standby.ask("SELECT count(*) FROM orders") == 0
    with OrderClient([node.address], timeout_s=WAIT_S) as client:
        made = client.create("c1", amount_cents=450, currency="EUR", idempotency_key="once")
    assert flow.pair.standby.ask("SELECT id::text FROM orders") == made


def test_what_asynchronous_replication_loses_is_said_and_its_ids_are_used_again(flow: Flow) -> None:
    pair = flow.pair
    flow.start("order-1", "serve", "order", "--port", "0")
    kept = flow.create(5)
    consumers = flow.start_consumers()
    flow.settle(pair.primary, kept)
    for node in consumers:
        node.process.send_signal(signal.SIGTERM)
        assert node.ended(within_s=WAIT_S) == 0
    without_effects = flow.create(3)
    wait_until(
        "published rows",
        lambda: pair.primary.ask("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0,
        timeout_s=WAIT_S,
    )
    flow.replicate()
    pair.cut()
    flow.start_consumers()
    lost = flow.create(LOGGED_AHEAD + 10)
    flow.settle(pair.primary, kept | without_effects | lost)
    lost_ids = outbox_ids(pair.primary) - outbox_ids(pair.standby)
    assert len(lost_ids) == len(lost)

    pair.fail_over()
    new = flow.create(LOGGED_AHEAD + 10)
    assert outbox_ids(pair.standby) & lost_ids, "no id was used again"
    flow.settle(pair.standby, kept | new)
    code, said = flow.brewctl("verify", "--wait", "30", "--late", "5")
    print(code, said)
    print(flow.brewctl("doctor"))
    print(flow.brewctl("outbox", "republish", "--missing", "--yes"))
    flow.settle(pair.standby, kept | new | without_effects)
    code, said = flow.brewctl("verify", "--wait", "30", "--late", "5")
    print(code, said)
    raise AssertionError


def outbox_ids(server: Instance) -> set[int]:
    with psycopg.connect(server.url) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM outbox")}
