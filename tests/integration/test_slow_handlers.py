"""Handlers that take long: longer than a transaction may be idle, longer than a member's poll interval."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kafka import KafkaProducer
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.consumption import Consumption
from brewctl.delivery.inbox.failures import SLOW, StoppedError
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.lab.play.nodes import Nodes
from tests.conftest import Rig, limited, open_rig
from tests.integration.kafka_tools import good_record
from tests.integration.test_inbox import record
from tests.pgbouncer import pooled

IDLE_S = 1
# Longer than that.
LONG_S = 1.3


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("slow")) as rig:
        rig.connection.execute("CREATE TABLE told (n bigint PRIMARY KEY)")
        yield rig


@pytest.fixture(autouse=True)
def _empty(rig: Rig) -> None:
    rig.connection.execute("TRUNCATE told, parked_events, processed_events, redeliveries")


@pytest.fixture
def impatient(rig: Rig) -> Settings:
    return limited(rig.settings, database_idle_transaction_s=IDLE_S, publish_s=0.5, consume_records_first=400)


@pytest.fixture
def short(impatient: Settings) -> Iterator[Pool]:
    """A pool whose sessions are ended after IDLE_S of a transaction in which nothing happens."""
    with database.open_pool(impatient, name="slow", size=1) as pool:
        yield pool


def told(rig: Rig) -> list[int]:
    return [number for (number,) in rig.connection.execute("SELECT n FROM told ORDER BY n")]


def tell(tx: Any, number: int) -> None:
    tx.execute("INSERT INTO told VALUES (%s)", (number,))


def parked(rig: Rig) -> list[tuple[int, int, str]]:
    return rig.connection.execute("SELECT outbox_id, attempts, reason FROM parked_events ORDER BY id").fetchall()


def returns(_tx: Any, _number: int) -> None:
    pass


def catches(tx: Any, number: int) -> None:
    try:
        tell(tx, number)
    except psycopg.Error:
        return


def wraps(tx: Any, number: int) -> None:
    try:
        tell(tx, number)
    except psycopg.Error:
        raise KeyError("something else") from None


def downstream(form: str, each: Callable[[int, Any], None], *, attempts: int = 2) -> Downstream:
    def handler(event: Any, tx: Any) -> None:
        each(event.outbox_id, tx)

    def batch(events: Sequence[Any], tx: Any) -> None:
        for event in events:
            each(event.outbox_id, tx)

    own: dict[str, Any] = {form: {"handler": handler, "batch": batch}[form]}
    return Downstream("slow", **own, events=("order.created",), attempts=attempts)


@pytest.mark.parametrize(
    ("form", "then"),
    [("handler", returns), ("handler", tell), ("handler", catches), ("handler", wraps), ("batch", tell)],
)
def test_an_event_whose_handler_leaves_its_transaction_idle_for_too_long_is_parked_and_others_go_through(
    rig: Rig, impatient: Settings, short: Pool, form: str, then: Callable[[Any, int], None]
) -> None:
    def each(number: int, tx: Any) -> None:
        if number == 2:
            time.sleep(LONG_S)
            then(tx, number)
        else:
            tell(tx, number)

    inbox = Inbox(impatient, short, downstream(form, each), node="n")
    inbox.handle([record(1), record(2)])
    assert told(rig) == [1]
    ((number, attempts, reason),) = parked(rig)
    assert (number, attempts) == (2, 2)
    assert "the handler kept its transaction idle for longer than 1 s, and PostgreSQL ended it" in reason
    assert "idle_in_transaction_session_timeout" in reason
    assert (inbox.tally.effects, inbox.tally.parked) == (1, 1)


def test_a_batch_handler_that_is_too_slow_for_many_events_gets_fewer(
    rig: Rig, impatient: Settings, short: Pool
) -> None:
    sizes: list[int] = []

    def batch(events: Sequence[Any], tx: Any) -> None:
        sizes.append(len(events))
        time.sleep(0.005 * len(events))
        for event in events:
            tell(tx, event.outbox_id)

    slow = Downstream("slow", batch=batch, events=("order.created",), attempts=1)
    inbox = Inbox(impatient, short, slow, node="n")
    inbox.handle([record(number) for number in range(1, 401)])
    assert told(rig) == list(range(1, 401))
    assert (inbox.tally.effects, parked(rig)) == (400, [])
    assert sizes[0] == 400
    before = len(sizes)
    inbox.handle([record(number) for number in range(401, 801)])
    assert sizes[before] < 400, "what was too much is not tried again with the next batch"


def test_a_handler_that_is_too_slow_for_every_event_stops_its_downstream(
    rig: Rig, impatient: Settings, short: Pool
) -> None:
    impatient = limited(impatient, failures_in_a_row=3)
    inbox = Inbox(impatient, short, downstream("handler", lambda _number, _tx: time.sleep(LONG_S)), node="n")
    with pytest.raises(
        StoppedError, match=r"3 events in a row failed: .* kept its transaction idle for longer than 1 s"
    ):
        inbox.handle([record(number) for number in range(1, 5)])
    assert parked(rig) == []
    assert "stopped: 3 events in a row" in inbox.work().trouble


@pytest.mark.parametrize("form", ["handler", "batch"])
def test_a_session_that_an_operator_ended_is_no_fault_of_the_event(
    rig: Rig, impatient: Settings, short: Pool, form: str
) -> None:
    """Also where the handler is slow: what counts is what PostgreSQL says it ended the session for."""
    ended: list[int] = []

    def each(number: int, tx: Any) -> None:
        if len(ended) < 3:
            ended.append(tx.info.backend_pid)
            rig.connection.execute("SELECT pg_terminate_backend(%s, 10000)", (ended[-1],))
            time.sleep(LONG_S)
        tell(tx, number)

    inbox = Inbox(impatient, short, downstream(form, each, attempts=1), node="n")
    batch = inbox.read([record(1)])
    for _ in range(3):
        with pytest.raises(database.UNAVAILABLE):
            inbox.apply(batch)
    inbox.apply(batch)
    assert (told(rig), parked(rig), len(ended)) == ([1], [], 3)


@pytest.mark.parametrize("idle", [True, False])
def test_postgresqls_bound_of_a_whole_transaction_blames_the_handler_only_where_it_was_waited_for(
    rig: Rig, impatient: Settings, idle: bool
) -> None:
    """A statement that takes long may wait for a lock of another session."""

    def each(_number: int, tx: Any) -> None:
        if idle:
            time.sleep(LONG_S)
        tx.execute("SELECT pg_sleep(%s)", (0 if idle else 30,))

    url = make_conninfo(
        impatient.database_url, options="-c transaction_timeout=1s -c idle_in_transaction_session_timeout=1h"
    )
    settings = dataclasses.replace(impatient, database_url=url)
    with database.open_pool(settings, name="slow", size=1) as pool:
        inbox = Inbox(settings, pool, downstream("handler", each, attempts=1), node="n")
        if idle:
            inbox.handle([record(1)])
            assert "longer than PostgreSQL's transaction_timeout allows" in parked(rig)[0][2]
        else:
            with pytest.raises(SLOW):
                inbox.handle([record(1)])
            assert parked(rig) == []


def test_behind_a_pooler(rig: Rig, impatient: Settings) -> None:
    def each(number: int, tx: Any) -> None:
        if number == 1:
            time.sleep(LONG_S)
        tell(tx, number)

    with pooled(impatient.database_url) as url:
        settings = dataclasses.replace(impatient, database_url=url)
        with database.open_pool(settings, name="slow", size=1) as pool:
            inbox = Inbox(settings, pool, downstream("handler", each), node="n")
            inbox.handle([record(1), record(2)])
    assert told(rig) == [2]
    assert "idle for longer than 1 s" in parked(rig)[0][2]


def test_the_bound_of_the_url_wins_and_is_the_one_that_is_named(rig: Rig, impatient: Settings) -> None:
    url = make_conninfo(impatient.database_url, options="-c idle_in_transaction_session_timeout=700ms")
    settings = dataclasses.replace(impatient, database_url=url)

    def each(_number: int, _tx: Any) -> None:
        time.sleep(LONG_S)

    with database.open_pool(settings, name="slow", size=1) as pool:
        Inbox(settings, pool, downstream("handler", each, attempts=1), node="n").handle([record(1)])
    assert "idle for longer than 700ms" in parked(rig)[0][2]


# The group


# Longer than a poll interval, and than a session of the group.
SLEEP_S = 8.0


def produce(rig: Rig, *names: str) -> None:
    """Put an order of each customer into the topic, all in one partition."""
    producer = KafkaProducer(**connection(rig.settings, name="test"))
    for good in (good_record(customer_id=name) for name in names):
        producer.send(rig.settings.topic, good.value, good.key, headers=good.headers, partition=3)
    producer.close()


def customers(rig: Rig) -> set[str]:
    return {name for (name,) in rig.connection.execute("SELECT name FROM customers")}


def test_a_handler_that_sleeps_longer_than_the_poll_interval_stays_in_its_group(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    """The member polls on while the handler is at work: no partition moves, and each event has its effect once."""
    settings = limited(
        rig.settings,
        session_s=6.0,
        poll_interval_s=6.0,
        database_wait_s=0.2,
        database_connect_s=1,
        database_statement_s=2,
        database_answer_s=2.5,
        publish_s=1.5,
    )
    produce(rig, *["alice"] * 5)
    calls: list[int] = []

    def handler(event: Any, tx: Any) -> None:
        calls.append(event.outbox_id)
        tell(tx, event.outbox_id)
        if len(calls) == 2:
            time.sleep(SLEEP_S)

    stop = threading.Event()
    with database.open_pool(settings, name="slow-1", size=1) as pool:
        inbox = Inbox(settings, pool, Downstream("slow", handler=handler, events=("order.created",)), node="slow-1")
        consumption = Consumption(settings, inbox, group="slow", node="slow-1")
        member = threading.Thread(target=consumption.run, args=(stop,))
        member.start()
        try:
            rig.wait("its effects", lambda: len(told(rig)) == 5)
        finally:
            stop.set()
            member.join()
    said = capfd.readouterr().out
    assert said.count("partitions assigned") == 1, said
    assert "commit_refused" not in said
    assert len(calls) == len(set(calls)) == 5
    assert (inbox.tally.effects, inbox.tally.skipped) == (5, 0)


MODULE = f"""
import time
from brewctl import Event, OrderCreated, downstream

@downstream("sleepy", schema="CREATE TABLE IF NOT EXISTS customers (name text)", attempts=2)
def each(event: Event[OrderCreated], tx):
    if event.data.customer_id == "slow":
        time.sleep({LONG_S})
    tx.execute("INSERT INTO customers VALUES (%s)", [event.data.customer_id])
"""


def test_a_node_parks_what_takes_too_long_and_a_redrive_that_does_too_is_one_line(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(MODULE)
    url = make_conninfo(rig.settings.database_url, options="-c idle_in_transaction_session_timeout=1s")
    rig.env.update(BREW_DATABASE_URL=url, BREW_APP_DIR=str(tmp_path), BREW_DOWNSTREAMS="sleepy:each")
    assert rig.brewctl("db", "init", "sleepy:each").returncode == 0
    produce(rig, "one", "slow", "another")
    settings = dataclasses.replace(rig.settings, database_url=url)
    with Nodes(settings, logs=tmp_path / "logs", on_line=lambda _line: None) as nodes:
        node = nodes.start("sleepy-1", "consume", "sleepy:each", "--app-dir", str(tmp_path))
        rig.wait("a parked event", lambda: len(parked(rig)) == 1)
        rig.wait("the others", lambda: customers(rig) >= {"one", "another"})
    said = node.log.read_text()
    assert "parked" in said
    assert "kept its transaction idle for longer than 1s" in said
    assert "Traceback" not in said
    (found,) = rig.connection.execute("SELECT id FROM parked_events").fetchone() or (0,)
    again = rig.brewctl("dlq", "redrive", f"p{found}")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1), again.stderr
    assert "kept its transaction idle for longer than 1s" in again.stderr
    assert "it is parked as before" in again.stderr
    assert len(parked(rig)) == 1
