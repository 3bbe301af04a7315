"""Drains: how fast a publisher takes 20,000 waiting rows, and consumers 20,000 waiting records.

If both Kafka clients are installed, they take turns, so that other work on the machine affects both alike.
"""

import contextlib
import importlib.util
import signal
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from brewctl.config import SHORT_NAMES
from brewctl.delivery import database, events, registry
from brewctl.delivery.broker import Record, baseline, open_reader
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.schema import registration
from brewctl.errors import BrewError
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground
from brewctl.lab.bench.handlers import INSERT, TABLE
from brewctl.proto.orders_pb2 import OrderCreated
from brewctl.roles import inventory
from brewctl.sandbox import tools
from brewctl.security import Protocol
from brewctl.sql import bench_queries

WAITING = 20_000
_ONE_BY_ONE = 1500
_TURNS = 3
_BUILT_IN = SHORT_NAMES["inventory"]
_CLIENT = "BREW_KAFKA_CLIENT"
_FIRST = "kafka-python-ng"
_SECOND, _SECOND_MODULE = "librdkafka", "confluent_kafka"
# Targets of the second client, as a share of the speed of Kafka's own Java tools.
_PRODUCED, _CONSUMED = 0.8, 0.6
# The downstreams that call a handler.
HANDLERS = {"batch": "brewctl.lab.bench.handlers:batch", "event": "brewctl.lab.bench.handlers:each"}


def publish(ground: Ground) -> Iterator[Figure]:
    """Measure an order node's publisher, from the first row that it marks as published."""
    turns: dict[str, list[float]] = {client: [] for client in clients()}
    for _ in range(_TURNS):
        for client, rates in turns.items():
            ground.reset()
            rates.append(drain(ground, env={_CLIENT: client}))
    of_client = {client: statistics.median(rates) for client, rates in turns.items()}
    ours = of_client[_FIRST]
    records = _records(ground)
    ground.tell("the bare producer loop")
    floor = baseline.produce(ground.settings, records)
    size = sum(_bytes(record) for record in records) // len(records)
    ground.tell("Kafka's ProducerPerformance")
    kafkas = _by_java(ground, lambda java: java.produce(ground.settings.topic, records=5 * WAITING, size=size))
    yield Figure("publisher drain", ours, "/s", floor, "bare producer", at_least=0.7)
    yield Figure("publisher drain against Java", ours, "/s", kafkas, "ProducerPerformance")
    if (second := of_client.get(_SECOND)) is not None:
        yield Figure("publisher drain, librdkafka", second, "/s", kafkas, "ProducerPerformance", at_least=_PRODUCED)
        yield Figure("librdkafka against the first", second, "/s", ours, f"publisher drain, {_FIRST}")


def consume(ground: Ground) -> Iterator[Figure]:
    """Measure two inventory nodes, paused until all records are in the topic; then one node, in each form, on the same.

    The forms take turns, so that other work on the machine affects all alike.
    """
    ground.require_one_database()
    both = _two_nodes(ground)
    forms = (_BUILT_IN, *HANDLERS.values())
    turns: dict[tuple[str, str], list[float]] = {(name, _FIRST): [] for name in forms}
    turns |= {(_BUILT_IN, client): [] for client in clients()}
    with _tables(ground) as own:
        for _ in range(_TURNS):
            for (name, client), rates in turns.items():
                rates.append(_one_node(own, name, env={_CLIENT: client}))
        ground.tell("psycopg alone, an INSERT an event")
        inserts = _inserts(own)
    medians = {turn: statistics.median(rates) for turn, rates in turns.items()}
    of_form = {name: medians[name, _FIRST] for name in forms}
    one = of_form[_BUILT_IN]
    ground.tell("the bare fetch loop")
    floor = baseline.fetch(ground.settings, WAITING)
    ground.tell("Kafka's ConsumerPerformance")
    kafkas = _by_java(ground, lambda java: java.consume(ground.settings.topic, records=WAITING))
    ground.tell("a transaction per record")
    alone = _one_by_one(ground)
    yield Figure("consumer drain, one node", one, "/s", floor, "bare fetch", at_least=0.4)
    yield Figure("consumer drain against one by one", one, "/s", alone, "commit per record", at_least=5.0)
    yield Figure("consumer drain against Java", one, "/s", kafkas, "ConsumerPerformance")
    if (second := medians.get((_BUILT_IN, _SECOND))) is not None:
        yield Figure("consumer drain, librdkafka", second, "/s", kafkas, "ConsumerPerformance", at_least=_CONSUMED)
        yield Figure("one node by librdkafka", second, "/s", one, f"one node, {_FIRST}")
    yield Figure("consumer drain, two nodes", both, "/s", one, "one node")
    yield Figure("consumer drain, batch form", of_form[HANDLERS["batch"]], "/s", one, "the built-in form", at_least=0.7)
    each = of_form[HANDLERS["event"]]
    yield Figure("consumer drain, event form", each, "/s", one, "the built-in form")
    # The event form's floor is psycopg, as it needs a round trip for each event.
    yield Figure("event form against psycopg", each, "/s", inserts, "an INSERT an event", at_least=0.5)


def clients() -> list[str]:
    """Return the names of the installed Kafka clients, the default first."""
    return [_FIRST, *([_SECOND] if importlib.util.find_spec(_SECOND_MODULE) else [])]


def _two_nodes(ground: Ground) -> float:
    names = "inventory-1", "inventory-2"
    ground.reset()
    with ground.nodes(*names, env={_CLIENT: _FIRST}) as members:
        for member in members:
            member.process.send_signal(signal.SIGSTOP)
        try:
            drain(ground, env={_CLIENT: _FIRST})
        finally:
            for member in members:
                member.process.send_signal(signal.SIGCONT)
        ground.tell(f"{' and '.join(names)}: {WAITING:,} records wait")
        ground.wait_effects(inventory.DOWNSTREAM, WAITING)
    return ground.effect_rate(inventory.DOWNSTREAM)


def _one_node(ground: Ground, name: str, *, env: Mapping[str, str]) -> float:
    """Let one node of a downstream process the records in the topic; return its effects a second."""
    ground.forget_effects()
    ground.connection.execute(f"TRUNCATE {TABLE}".encode())
    downstream = registry.find(name)
    ground.tell(f"{downstream.group}: {WAITING:,} records wait")
    with ground.nodes("inventory-1", arguments=("consume", name), env=env):
        ground.wait_effects(downstream, WAITING)
    return ground.effect_rate(downstream)


def _inserts(ground: Ground) -> float:
    """Return the rows a second that psycopg alone writes with the event handler's statement."""
    ground.connection.execute(f"TRUNCATE {TABLE}".encode())
    ids = [uuid.uuid4() for _ in range(WAITING // 4)]
    began = time.perf_counter()
    with ground.connection.transaction():
        for order_id in ids:
            ground.connection.execute(INSERT, (order_id, 1))
    return len(ids) / (time.perf_counter() - began)


@contextlib.contextmanager
def _tables(ground: Ground) -> Iterator[Ground]:
    """Add the bench's downstreams for the block. Their tables and registrations are removed afterwards."""
    names = _BUILT_IN, *HANDLERS.values()
    settings = replace(ground.settings, downstreams=tuple(dict.fromkeys((*ground.settings.downstreams, *names))))
    own = Ground(settings, ground.connection, logs=ground.logs, tell=ground.tell)
    found = [registry.find(name) for name in HANDLERS.values()]
    try:
        for downstream, name in zip(found, HANDLERS.values(), strict=True):
            registration.initialize(settings, downstream, name, take_over=False, tell=ground.tell)
        yield own
    finally:
        own.forget_effects()
        own.connection.execute(f"DROP TABLE IF EXISTS {TABLE}".encode())
        groups = [downstream.group for downstream in found]
        own.connection.execute(bench_queries["forget_downstreams"], {"consumers": groups})


def drain(ground: Ground, *, env: Mapping[str, str] | None = None) -> float:
    """Let an order node publish 20,000 waiting rows; return the rows a second."""
    ground.let_wait(WAITING)
    by = f" ({env[_CLIENT]})" if env and len(clients()) > 1 else ""
    ground.tell(f"order-1: {WAITING:,} rows wait{by}")
    with ground.nodes("order-1", env=env):
        ground.wait_published()
    return ground.ask("publish_rate", rows=WAITING)


def _one_by_one(ground: Ground) -> float:
    """Process records with a commit for each, as the original story does; return the records a second."""
    ground.forget_effects()
    records: list[Record] = []
    with open_reader(ground.settings) as reader:
        for some in reader.read(ground.settings.topic, reader.bounds(ground.settings.topic)):
            records += some
            if len(records) >= _ONE_BY_ONE:
                break
    with database.open_pool(ground.settings, name="bench", size=1, by_index=True) as pool:
        inbox = Inbox(ground.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        inbox.handle(records[:1])
        began = time.perf_counter()
        for record in records[1:_ONE_BY_ONE]:
            inbox.handle([record])
        seconds = time.perf_counter() - began
        inbox.close()
    return (min(len(records), _ONE_BY_ONE) - 1) / seconds


def _records(ground: Ground) -> list[Record]:
    """Return the records that the publisher has sent."""
    rows = ground.connection.execute("SELECT id, aggregate_id, topic, payload FROM outbox").fetchall()
    return [
        Record(
            topic, key.encode(), payload, events.order_headers(row_id, OrderCreated.FromString(payload), node="bare")
        )
        for row_id, key, topic, payload in rows
    ]


def _bytes(record: Record) -> int:
    """Return the bytes of a record's key, value and headers."""
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def _by_java(ground: Ground, measure: Callable[[tools.KafkaTools], float]) -> float | None:
    """Measure with Kafka's own tools. Returns None, and tells why, if they can't be downloaded or used."""
    if ground.settings.kafka_security.protocol is not Protocol.PLAINTEXT:
        ground.tell("without it: kafka's own tools are given no certificates and passwords")
        return None
    try:
        return measure(tools.KafkaTools(ground.settings.brokers))
    except BrewError as error:
        ground.tell(f"without it: {error.message}")
        return None
