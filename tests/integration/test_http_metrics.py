"""What roles count, as a scraper reads it, beside what is in the database."""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from kafka import KafkaProducer

from brewctl import __version__
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.lab.play.nodes import Node
from tests.conftest import Rig, open_rig, run
from tests.integration.grpc_tools import SERVICE, Service, dialled, order
from tests.integration.http_tools import HTTP, numbers, place
from tests.integration.kafka_tools import good_record

MODULE = """
from brewctl import Event, Later, OrderCreated, Reject, downstream

@downstream("picky", attempts=2, schema="CREATE TABLE IF NOT EXISTS picked (order_id uuid)")
def picky(event: Event[OrderCreated], tx):
    if event.data.customer_id == "rejected":
        raise Reject("not this one")
    if event.data.customer_id == "failing":
        raise RuntimeError("a bug")
    tx.execute("INSERT INTO picked VALUES (%s)", [event.data.order_id])
"""


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("http")) as rig:
        yield rig


@pytest.fixture(scope="module")
def node(rig: Rig) -> Node:
    return rig.start("order-1", "serve", "order", "--port", "0", *HTTP)


@pytest.fixture(scope="module")
def client(rig: Rig, node: Node) -> Iterator[Service]:
    with dialled(rig, node.address) as client:
        yield client


def count(rig: Rig, query: str) -> int:
    (found,) = rig.connection.execute(query.encode()).fetchone() or (0,)
    return int(str(found))


def test_calls_are_counted_by_how_they_ended_and_rows_as_they_are_published(
    rig: Rig, node: Node, client: Service
) -> None:
    where = place(node)
    before = numbers(where)
    written = count(rig, "SELECT count(*) FROM outbox")
    key = str(uuid.uuid4())
    first = client.create().response.order_id
    for each in ({"idempotency_key": key}, {"idempotency_key": key}, {"amount_cents": 0}):
        client.create(**each)
    assert client.get(first).code is grpc.StatusCode.OK
    assert client.get(str(uuid.uuid4())).code is grpc.StatusCode.NOT_FOUND
    assert client.cancel(first).code is grpc.StatusCode.OK
    assert client.health().code is grpc.StatusCode.OK
    for path in ("NoSuchMethod", "Another"):
        with pytest.raises(grpc.RpcError):
            client.channel.unary_unary(f"/{SERVICE}/{path}")(b"")
    with pytest.raises(grpc.RpcError):
        client.channel.unary_unary("/another.Service/Create")(b"")
    written = count(rig, "SELECT count(*) FROM outbox") - written
    assert written == 3
    rig.wait("published rows", lambda: count(rig, "SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0)

    calls = {
        ("Create", "OK"): 3,
        ("Create", "INVALID_ARGUMENT"): 1,
        ("Get", "OK"): 1,
        ("Get", "NOT_FOUND"): 1,
        ("Cancel", "OK"): 1,
        ("unknown", "UNIMPLEMENTED"): 3,
    }
    names = {f'brew_order_calls_total{{code="{code}",method="{method}"}}': of for (method, code), of in calls.items()}
    rig.wait("the calls", lambda: {name: numbers(where)[name] - before[name] for name in names} == names)
    rig.wait("the rows", lambda: numbers(where)["brew_outbox_published_total"] == 3)
    found = numbers(where)
    assert {name for name in found if name.startswith("brew_order_calls_total")} == names.keys(), "and no other label"
    assert found['brew_order_call_seconds_count{method="Create"}'] == 4
    assert 1 <= found["brew_outbox_publish_seconds_count"] <= 3
    assert found["brew_outbox_publish_seconds_sum"] > 0
    assert found[f'brew_build_info{{role="order",version="{__version__}"}}'] == 1
    assert found["process_resident_memory_bytes"] > 0
    assert not any(name.startswith("brew_inbox") for name in found), "a role shows what it does, and nothing else"


def test_a_call_whose_client_goes_is_counted_by_why(rig: Rig, node: Node, client: Service) -> None:
    where = place(node)
    names = [f'brew_order_calls_total{{code="{code}",method="Create"}}' for code in ("CANCELLED", "DEADLINE_EXCEEDED")]
    with rig.connection.transaction():
        rig.connection.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        call = client.stub.Create.future(order(), timeout=60)
        assert client.create(timeout=0.5).code is grpc.StatusCode.DEADLINE_EXCEEDED
        call.cancel()
        rig.nodes.started[0].wait_for("both", lambda _: [numbers(where)[name] for name in names] == [1, 1])


@pytest.mark.parametrize("timeout_s", [0.2501, 1.0001])
def test_a_deadline_that_grpc_rounds_up_is_no_cancel(rig: Rig, node: Node, client: Service, timeout_s: float) -> None:
    """The client ends its call up to a hundredth of its time before the deadline that the server was told."""
    where, calls = place(node), 20
    before = numbers(where)
    with rig.connection.transaction():
        rig.connection.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        late = [client.stub.Create.future(order(), timeout=timeout_s) for _ in range(calls)]
        assert {call.exception().code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        rig.nodes.started[0].wait_for("all of them", lambda _: sum(ended(where, before)) == calls)
    assert ended(where, before) == [0, calls]


def ended(where: str, before: Mapping[str, float]) -> list[float]:
    """How many Creates have ended since then: by their clients' cancel, and by their deadline."""
    names = [f'brew_order_calls_total{{code="{code}",method="Create"}}' for code in ("CANCELLED", "DEADLINE_EXCEEDED")]
    now = numbers(where)
    return [now.get(name, 0) - before.get(name, 0) for name in names]


def test_records_are_counted_by_what_became_of_them(rig: Rig, tmp_path: Path, client: Service) -> None:
    (tmp_path / "picky.py").write_text(MODULE)
    env = {**rig.env, "BREW_APP_DIR": str(tmp_path)}
    assert run("db", "init", "picky:picky", env=env).returncode == 0
    node = rig.start("picky-1", "consume", "picky:picky", "--app-dir", str(tmp_path), *HTTP)
    where = place(node)
    names = ("effect", "duplicate", "other", "dead", "parked")

    def counted() -> list[float]:
        found = numbers(where)
        return [found[f'brew_inbox_records_total{{consumer="picky",outcome="{name}"}}'] for name in names]

    def done() -> bool:
        return node_reads(rig, "picky") == sum(counted())

    rig.wait("what was there", lambda: counted()[0] == count(rig, "SELECT count(*) FROM picked") > 0 and done())
    before, delivered = counted(), numbers(where)['brew_delivery_seconds_count{consumer="picky"}']
    assert delivered == before[0]
    assert before[2] == 1, "the cancel, of which it takes none"
    assert client.create().code is grpc.StatusCode.OK
    for customer in ("rejected", "failing"):
        assert client.create(customer_id=customer).code is grpc.StatusCode.OK
    twice = good_record()
    producer = KafkaProducer(**connection(rig.settings, name="test"))
    for _ in range(2):
        producer.send(rig.settings.topic, twice.value, twice.key, headers=twice.headers)
    producer.send(rig.settings.topic, b"no event", b"key", headers=[])
    producer.close()

    rig.wait(
        "all of them", lambda: [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1, 0, 1, 2]
    )
    found = numbers(where)
    assert count(rig, "SELECT count(*) FROM picked") == counted()[0]
    assert count(rig, "SELECT count(*) FROM parked_events WHERE consumer = 'picky'") == counted()[4]
    assert found['brew_inbox_retries_total{consumer="picky",reason="effect"}'] == 1
    assert found['brew_delivery_seconds_count{consumer="picky"}'] == counted()[0], "new ones alone"
    assert found['brew_inbox_batch_seconds_count{consumer="picky"}'] > 0
    assert found['brew_delivery_seconds_sum{consumer="picky"}'] > 0


def node_reads(rig: Rig, group: str) -> int:
    """How many records a group's node has done, by its row."""
    return count(rig, f"SELECT coalesce(max(processed), 0) FROM nodes WHERE role = '{group}'")


def test_rows_that_kafka_refuses_are_counted(rig: Rig) -> None:
    node = rig.start("publisher-1", "publish", *HTTP)
    where = place(node)
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload, event_type) VALUES"
        " ('a', 'no topic of this name', 'x', 'order.created'), ('b', %s, 'x', 'another.type')",
        (rig.settings.topic + "-absent",),
    )
    # Whichever node takes them: the order node publishes too.
    others = place(rig.nodes.started[0])

    def failures(reason: str) -> float:
        name = f'brew_outbox_failures_total{{reason="{reason}"}}'
        return numbers(where)[name] + numbers(others)[name]

    rig.wait("a refusal", lambda: failures("refused") == 1)
    rig.wait("an absence", lambda: failures("no_topic") >= 1)
    rig.connection.execute("DELETE FROM outbox WHERE published_at IS NULL")


@pytest.mark.parametrize("command", [("serve", "order"), ("publish",), ("consume", "inventory")])
def test_a_taken_port_a_bad_address_and_an_absent_library_are_one_line_each(
    rig: Rig, node: Node, command: tuple[str, ...], tmp_path: Path
) -> None:
    where = place(node)
    taken = run(*command, env={**rig.env, "BREW_HTTP": where})
    assert taken.returncode == 1
    (line,) = [line for line in taken.stderr.splitlines() if "ts=" not in line]
    port = where.rpartition(":")[2]
    assert line.startswith(f"brewctl: port {port} on 127.0.0.1 can't be listened on (address already in use)")
    assert line.endswith("or choose another with --http")

    bad = run(*command, "--http", ":9464", env=rig.env)
    assert bad.returncode == 2
    assert bad.stderr.splitlines() == [
        "brewctl: --http ':9464' is not HOST:PORT: for example 127.0.0.1:9464, or [::1]:9464"
    ]

    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    absent = run(*command, *HTTP, env={**rig.env, "PYTHONPATH": str(tmp_path)})
    assert absent.returncode == 2
    assert absent.stderr.splitlines() == [
        "brewctl: --http: prometheus-client is not installed: pip install 'brewctl[metrics]'"
    ]
