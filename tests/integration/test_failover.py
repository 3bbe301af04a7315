"""The primary is lost and its standby promoted, by real streaming replication, while orders flow."""

import contextlib
import dataclasses
import re
import signal
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import ANY

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.client import OrderClient
from brewctl.config import Settings, environment
from brewctl.delivery import database, topics
from brewctl.delivery.broker import open_admin
from brewctl.delivery.downstream import Downstream, Reject
from brewctl.delivery.inbox import Inbox
from brewctl.lab.nodes import Node, Nodes
from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2_grpc
from brewctl.proto.orders_pb2 import CancelRequest
from brewctl.roles import inventory
from brewctl.verify import verify
from tests.conftest import limited, run
from tests.integration.grpc_tools import order
from tests.integration.postgres_pair import Instance, Pair, replicated
from tests.integration.test_event_identity import record
from tests.tcp_proxy import proxied

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
        create = orders_pb2_grpc.OrderServiceStub(channel).Create  # type: ignore[no-untyped-call]

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


def test_a_second_cancel_acknowledges_none_that_the_standby_does_not_have(flow: Flow) -> None:
    flow.pair.replicate_synchronously()
    node = flow.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    (order_id,) = flow.create(1)
    flow.pair.cut()
    with grpc.insecure_channel(node.address) as channel:
        cancel = orders_pb2_grpc.OrderServiceStub(channel).Cancel  # type: ignore[no-untyped-call]

        def is_cancelled() -> bool:
            return flow.pair.primary.ask("SELECT status FROM orders") == "ORDER_STATUS_CANCELLED"

        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                cancel(CancelRequest(order_id=order_id), timeout=15)
            wait_until("a cancel on the primary alone", is_cancelled, timeout_s=WAIT_S)
        flow.pair.fail_over()
    assert flow.pair.standby.ask("SELECT status FROM orders") == "ORDER_STATUS_NEW"
    with OrderClient([node.address], timeout_s=WAIT_S) as client:
        assert client.cancel(order_id) == "ORDER_STATUS_CANCELLED"
    assert flow.pair.standby.ask("SELECT status FROM orders") == "ORDER_STATUS_CANCELLED"


def test_a_host_that_swallows_everything_is_passed_by(flow: Flow) -> None:
    """A lost machine refuses nothing: each connection tries the next one after connect_timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{flow.pair.primary.port}"
        url = re.sub("@.*/", f"@{hosts}/", flow.pair.primary.url)
        settings = dataclasses.replace(flow.settings, database_url=f"{url}?connect_timeout=2")
        for command in (("counts",), ("db", "init")):
            done = run(*command, env=environment(settings))
            assert done.returncode == 0, done.stderr


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

    # What Kafka has and PostgreSQL lost is named, record by record; so is an order whose effects were lost, while its
    # groups have passed its record.
    assert broken(flow) == {
        "strangers": len(lost),
        **{f"{group}-missing": len(without_effects) for group in ("inventory", "notifications")},
        **{f"{group}-offsets": ANY for group in ("inventory", "notifications")},
    }
    code, said = flow.brewctl("verify")
    assert code == 1
    assert re.search(r"outbox \d+ at \d@\d+ is not in the outbox", said)
    assert re.search(r"outbox \d+ at \d@\d+ is another event", said)
    assert "has no inventory effect" in said
    assert flow.brewctl("outbox", "republish", "--missing", "--yes")[0] == 0
    flow.settle(pair.standby, without_effects)
    assert broken(flow) == {
        "strangers": len(lost),
        **{f"{group}-offsets": ANY for group in ("inventory", "notifications")},
    }
    for table in EFFECTS:
        assert pair.standby.ask(f"SELECT count(*) FROM {table}") == len(kept | without_effects | new)


def refuse(_event: object, _tx: object) -> None:
    raise Reject("never")


@pytest.mark.parametrize(
    ("downstream", "table"),
    [
        (inventory.DOWNSTREAM, "inventory_reservations"),
        (Downstream("inventory", handler=refuse, events=("order.created",)), "parked_events"),
    ],
    ids=["effect", "parked"],
)
def test_a_consumer_passes_no_event_that_the_standby_does_not_know_of(
    flow: Flow, downstream: Downstream, table: str
) -> None:
    """Its transaction is given up as it waits for the standby, and is found done by the next try."""
    settings = limited(flow.settings, database_connect_s=2, database_statement_s=3, database_answer_s=3.5)
    event = record(1, event_id=str(uuid.uuid4()))
    count = f"SELECT count(*) FROM {table}"
    flow.pair.replicate_synchronously()
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, downstream, node="inventory-1")
        flow.pair.cut()
        for _ in range(2):
            with pytest.raises(database.NoAnswerError):
                inbox.handle([event])
            wait_until("a row on the primary alone", lambda: flow.pair.primary.ask(count) == 1, timeout_s=WAIT_S)
        flow.pair.fail_over()
        with contextlib.suppress(*database.UNAVAILABLE):  # of the connection that the kill ended
            inbox.handle([event])
        inbox.handle([event])
    assert flow.pair.standby.ask(count) == 1


def test_roles_leave_a_server_that_takes_no_writes_any_more(flow: Flow) -> None:
    """The old primary lives on, demoted: its connections are of no use to anybody."""
    pair = flow.pair
    roles = [flow.start("order-1", "serve", "order", "--port", "0"), *flow.start_consumers()]
    before = flow.create(3)
    flow.settle(pair.primary, before)
    flow.replicate()
    pair.primary.ask("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.ask("SELECT pg_reload_conf()")
    wait_until(
        "a word of it",
        lambda: "takes no writes" in roles[0].log.read_text("utf-8"),
        timeout_s=WAIT_S,
    )
    pair.promote()
    after = flow.create(3)
    flow.settle(pair.standby, before | after)
    assert all(node.alive for node in roles)
    assert pair.primary.ask("SELECT count(*) FROM orders") == len(before)


def test_a_role_that_reaches_a_standby_alone_says_so_and_waits_for_its_promotion(flow: Flow) -> None:
    pair = flow.pair
    flow.replicate()
    for url in (pair.standby.url, f"{pair.standby.url}?target_session_attrs=read-write"):
        alone = dataclasses.replace(flow.settings, database_url=url)
        for command in (("publish",), ("serve", "order", "--port", "0"), ("consume", "inventory")):
            done = run(*command, env=environment(alone))
            assert done.returncode == 3, done.stderr
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"brewctl: postgres 127.0.0.1:{pair.standby.port}/brew takes no writes: name the ")
    with Nodes(alone, logs=flow.nodes._logs, on_line=lambda _line: None) as nodes:
        node = nodes.start("publisher-9", "publish", "--wait", "forever")
        wait_until("a word of it", lambda: "takes no writes" in node.log.read_text("utf-8"), timeout_s=WAIT_S)
        pair.fail_over()
        node.wait_ready(timeout_s=WAIT_S)


def test_an_address_that_moves_to_the_promoted_standby(flow: Flow) -> None:
    """One name or address for all servers, as a cloud's or a load balancer's: clients see connections end."""
    pair = flow.pair
    with proxied("127.0.0.1", pair.primary.port) as address:
        moved = make_conninfo(pair.primary.url, port=address.port)
        one = Flow(pair, dataclasses.replace(flow.settings, database_url=moved), flow.nodes)
        with Nodes(one.settings, logs=flow.nodes._logs, on_line=lambda _line: None) as one.nodes:
            roles = [one.start("order-1", "serve", "order", "--port", "0"), *one.start_consumers()]
            before = one.create(3)
            one.settle(pair.primary, before)
            one.replicate()
            pair.primary.kill()
            address.move("127.0.0.1", pair.standby.port)
            pair.promote()
            after = one.create(3)
            one.settle(pair.standby, before | after)
            assert all(node.alive for node in roles)
            code, said = one.brewctl("verify", "--wait", "60")
            assert code == 0, said


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
