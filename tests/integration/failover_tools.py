"""The story on a primary and its standby."""

import contextlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from brewctl.client import OrderClient
from brewctl.config import Settings, environment
from brewctl.delivery import database
from brewctl.delivery.broker import open_admin
from brewctl.delivery.schema import setup
from brewctl.delivery.topics import topics
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lifecycle import wait_until
from brewctl.verify import verify
from tests.conftest import run
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


@contextlib.contextmanager
def open_flow(servers: dict[str, str], logs: Path) -> Iterator[Flow]:
    """A pair, the tables and the topic, for the time of the block."""
    with replicated() as pair:
        settings = Settings(
            database_url=pair.url,
            brokers=tuple(servers["BREW_KAFKA_BROKERS"].split(",")),
            topic=f"failover-{uuid.uuid4().hex[:12]}",
            group_prefix=f"{uuid.uuid4().hex[:8]}-",
        )
        topics.create(settings)
        with database.connect(settings) as connection:
            setup.initialize(connection)
        try:
            with Nodes(settings, logs=logs, on_line=lambda _line: None) as nodes:
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


def broken(flow: Flow) -> dict[str, object]:
    """What a verification finds broken, once everything is through."""
    found: dict[str, object] = {}

    def through() -> bool:
        result = verify(flow.settings, late_s=0)
        found.clear()
        found.update({check.name: check.violations for check in result.checks if check.violations})
        return not result.facts.on_the_way and "unpublished" not in found

    wait_until("the end of what is on its way", through, timeout_s=WAIT_S)
    return found


def outbox_ids(server: Instance) -> set[int]:
    with psycopg.connect(server.url) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM outbox")}
