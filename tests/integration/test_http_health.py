"""/livez and /readyz of real roles, while their servers come and go, threads hang, and handlers fail."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from kafka import KafkaProducer

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import registration
from brewctl.delivery.topics import topics
from brewctl.lab.network.proxy import Proxy
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.probes import endpoint
from brewctl.probes.health import Health
from brewctl.roles import consumer
from brewctl.sandbox import processes
from tests.conftest import Rig, limited, run
from tests.integration.grpc_tools import dialled, locked_orders, order, wait_for_blocked
from tests.integration.held_node import by_way_of
from tests.integration.http_tools import HTTP, page, place, wait_for
from tests.integration.kafka_tools import good_record
from tests.integration.own_broker import own_broker

ROLES = {
    "order-1": ("serve", "order", "--port", "0"),
    "publisher-1": ("publish",),
    "inventory-1": ("consume", "inventory"),
}
MODULE = """
from pathlib import Path
from brewctl import Event, OrderCreated, downstream

@downstream("mending", attempts=3)
def mending(event: Event[OrderCreated], tx):
    if not Path(__file__).with_name("mended").exists():
        raise RuntimeError("the shop is closed")
"""


@contextlib.contextmanager
def nodes(settings: Settings, tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(settings, logs=tmp_path, on_line=lambda _line: None) as started:
        yield started


@contextlib.contextmanager
def behind_a_proxy(rig: Rig, tmp_path: Path) -> Iterator[tuple[Nodes, Proxy]]:
    parts = psycopg.conninfo.conninfo_to_dict(rig.settings.database_url)
    upstream = (str(parts["host"]), int(str(parts["port"])))
    with Proxy("postgres", upstream) as proxy, nodes(by_way_of(rig.settings, proxy.port), tmp_path) as started:
        yield started, proxy


def send(settings: Settings, count: int) -> None:
    producer = KafkaProducer(**connection(settings, name="test"))
    for good in (good_record() for _ in range(count)):
        producer.send(settings.topic, good.value, good.key, headers=good.headers)
    producer.close()


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_a_role_whose_postgres_is_away_is_alive_and_not_ready_until_it_is_back(
    rig: Rig, tmp_path: Path, fault: str
) -> None:
    with behind_a_proxy(rig, tmp_path) as (started, proxy):
        places = {name: place(started.start(name, *command, *HTTP)) for name, command in ROLES.items()}
        for where in places.values():
            wait_for(where, "/readyz", 200, saying="ok the schema fits")
        if fault == "refused":
            proxy.refuse()
            proxy.reset()
        else:
            proxy.black_hole()
        for where in places.values():
            ill = wait_for(where, "/readyz", 503, saying="NO postgres 127.0.0.1:")
            assert ill.lines[0] == "not ready"
            alive = page(where, "/livez")
            assert (alive.status, alive.lines[0]) == (200, "alive"), alive
        proxy.heal()
        for where in places.values():
            assert wait_for(where, "/readyz", 200).lines[0] == "ready"


def test_a_schema_that_does_not_fit_any_more_is_named(rig: Rig) -> None:
    places = [place(rig.start(name, *command, *HTTP)) for name, command in ROLES.items()]
    rig.connection.execute("ALTER TABLE outbox RENAME COLUMN attempts TO tries")
    for where in places:
        ill = wait_for(where, "/readyz", 503)
        assert "NO missing in postgres: outbox.attempts: run `brewctl db migrate`" in ill.lines
    rig.connection.execute("ALTER TABLE outbox RENAME COLUMN tries TO attempts")
    for where in places:
        wait_for(where, "/readyz", 200)


def test_an_order_service_without_kafka_is_ready_and_a_publisher_is_not(rig: Rig, tmp_path: Path) -> None:
    nowhere = dataclasses.replace(rig.settings, brokers=(f"127.0.0.1:{processes.free_port()}",))
    with nodes(nowhere, tmp_path) as started:
        order_node, publisher = (started.start(name, *ROLES[name], *HTTP) for name in ("order-1", "publisher-1"))
        where = place(order_node)
        waits = "ok orders are taken, and their events wait: kafka is away"
        wait_for(where, "/readyz", 200, saying=waits)
        with dialled(rig, order_node.address) as client:
            assert client.create().response.order_id
        assert page(where, "/readyz").status == 200
        assert page(where, "/livez").status == 200
        wait_for(place(publisher), "/readyz", 503, saying="NO kafka is away")
        assert page(place(publisher), "/livez").status == 200


def test_a_consumer_without_kafka_is_alive_and_not_ready_until_it_is_back(rig: Rig, tmp_path: Path) -> None:
    with own_broker(tmp_path / "kafka", advertised="127.0.0.1:1", properties={}) as broker:
        settings = dataclasses.replace(rig.settings, brokers=(broker.address,))
        topics.create(settings)
        with nodes(settings, tmp_path) as started:
            where = place(started.start("inventory-1", *ROLES["inventory-1"], *HTTP))
            wait_for(where, "/readyz", 200, saying="ok it is a member of group inventory")
            # For this one the outage lasts longer than any turn of its loop may.
            quick = Downstream("quick", handler=lambda _event, _tx: None, events=("order.created",))
            with played(settings, quick) as other:
                wait_for(other, "/readyz", 200)
                with broker.paused():
                    for each in (where, other):
                        wait_for(each, "/readyz", 503, saying="NO kafka is away")
                        assert page(each, "/livez").status == 200
                for each in (where, other):
                    wait_for(each, "/readyz", 200)


def test_a_consumer_that_has_stopped_itself_is_alive_and_not_ready_until_it_is_mended(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    assert run("db", "init", "shop:mending", "--app-dir", str(tmp_path), env=rig.env).returncode == 0
    send(rig.settings, 20)
    where = place(rig.start("mending-1", "consume", "shop:mending", "--app-dir", str(tmp_path), *HTTP))
    stopped = "NO stopped: 10 events in a row failed: RuntimeError: the shop is closed"
    wait_for(where, "/readyz", 503, saying=stopped)
    assert page(where, "/livez").status == 200
    (tmp_path / "mended").touch()
    assert "ok its effects have not stopped" in wait_for(where, "/readyz", 200).lines


def test_a_role_that_drains_is_alive_and_not_ready(rig: Rig) -> None:
    node = rig.start("order-1", *ROLES["order-1"], *HTTP)
    where = place(node)
    wait_for(where, "/readyz", 200)
    with dialled(rig, node.address) as client:
        with locked_orders(rig):
            call = client.stub.Create.future(order(), timeout=60)
            wait_for_blocked(rig, 1)
            node.process.send_signal(signal.SIGTERM)
            assert wait_for(where, "/readyz", 503).lines[1].startswith("NO it drains")
            assert page(where, "/livez").status == 200
        assert call.result().order_id
    assert node.ended(within_s=30) == 0


def test_a_role_whose_table_waits_for_its_postgres_says_that_it_starts(rig: Rig) -> None:
    with psycopg.connect(rig.settings.database_url) as holder:
        holder.execute("LOCK TABLE pg_catalog.pg_class IN ACCESS EXCLUSIVE MODE")
        node = rig.nodes.start("publisher-1", *ROLES["publisher-1"], *HTTP)
        starting = page(place(node), "/readyz")
        assert (starting.status, starting.lines[0]) == (503, "not ready")
        assert starting.lines[1].startswith("NO starting")
        assert page(place(node), "/livez").status == 200
        holder.rollback()
    wait_for(place(node), "/readyz", 200)


SHORT = {
    "database_connect_s": 1,
    "database_statement_s": 3,
    "database_answer_s": 4.0,
    "database_wait_s": 1.0,
    "publish_s": 0.5,
    "poll_interval_s": 7.0,
}


@contextlib.contextmanager
def played(settings: Settings, downstream: Downstream) -> Iterator[str]:
    """Run a consumer in this process, with short bounds; yield where its pages are."""
    settings, stop = limited(settings, **SHORT), threading.Event()
    name = f"{downstream.group}:DOWNSTREAM"
    registration.initialize(settings, downstream, name, take_over=False, tell=lambda _text: None)
    health = Health(stop)
    pages = {"/livez": health.livez, "/readyz": health.readyz}
    with endpoint.serving(endpoint.Address("127.0.0.1", 0), pages) as bound:
        thread = threading.Thread(
            target=consumer.run,
            args=(settings, downstream, stop),
            kwargs={"name": name, "node": f"{downstream.group}-1", "health": health},
        )
        thread.start()
        try:
            yield f"{bound.host}:{bound.port}"
        finally:
            stop.set()
            thread.join(60)


def test_a_handler_that_hangs_makes_a_consumer_not_alive(rig: Rig) -> None:
    """Longer than Kafka lets a member hang."""
    hanging, release = threading.Event(), threading.Event()

    def hang(_event: object, _tx: object) -> None:
        hanging.set()
        release.wait(120)

    send(rig.settings, 1)
    downstream = Downstream("hanging", handler=hang, events=("order.created",))
    with played(rig.settings, downstream) as where, contextlib.ExitStack() as last:
        last.callback(release.set)
        assert hanging.wait(20)
        assert page(where, "/livez").status == 200
        stuck = wait_for(where, "/livez", 503)
        assert any(line.startswith("NO inbox has not moved for ") for line in stuck.lines)
        assert not any("consumer" in line for line in stuck.lines), "the one that waits for it moves"
        release.set()
        wait_for(where, "/livez", 200)


def test_a_node_of_the_lab_is_not_given_the_port_of_this_process(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREW_HTTP", "127.0.0.1:1")
    node: Node = rig.start("publisher-1", "publish")
    assert not any("http serves" in line for line in node.lines)
