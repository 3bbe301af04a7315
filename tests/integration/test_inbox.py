"""The consumer: each record's effect once, however often it comes and whoever takes it."""

import dataclasses
import itertools
import re
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from psycopg import sql

from brewctl.config import Settings
from brewctl.delivery import database, events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.batch import Batch
from brewctl.delivery.inbox.effects import effect_of
from brewctl.delivery.inbox.failures import SLOW, FailingError, StoppedError
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.proto.orders_pb2 import OrderCreated
from brewctl.roles import inventory, notifications
from tests.conftest import Rig, limited
from tests.integration.reading import read_topic


def record(outbox_id: int, order_id: str | None = None) -> Record:
    order = OrderCreated(order_id=order_id or str(uuid.uuid4()), tenant_id="brew", trace_id="0" * 32)
    key = events.aggregate_id(order.order_id)
    headers = events.order_headers(outbox_id, order, node="order-1")
    return Record("topic", key.encode(), order.SerializeToString(), headers, 0, outbox_id)


def rows(rig: Rig, table: str) -> int:
    statements = {
        "inventory_reservations": "SELECT count(*) FROM inventory_reservations",
        "notifications_log": "SELECT count(*) FROM notifications_log",
        "processed_events": "SELECT count(*) FROM processed_events",
    }
    (count,) = rig.connection.execute(statements[table]).fetchone() or (0,)
    return int(str(count))


def test_a_batch_has_its_effects_once(rig: Rig, pool: Pool) -> None:
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    batch = [record(number) for number in range(1, 11)]
    inbox.handle(batch)
    inbox.handle(batch)
    assert (inbox.tally.processed, inbox.tally.effects, inbox.tally.skipped) == (20, 10, 10)
    assert rows(rig, "inventory_reservations") == rows(rig, "processed_events") == 10


def test_a_batch_is_one_round_trip_and_each_payload_is_parsed_once(rig: Rig, tmp_path: Path) -> None:
    written = tmp_path / "trace"
    with database.open_pool(rig.settings, name="test", size=1) as pool, written.open("w") as trace:
        with pool.connection() as connection:
            connection.pgconn.trace(trace.fileno())
        with mock.patch.object(events, "parse_order", wraps=events.parse_order) as parsed:
            counted = dataclasses.replace(inventory.DOWNSTREAM, decoders={events.ORDER_CREATED: events.parse_order})
            inbox = Inbox(rig.settings, pool, counted, node="inventory-1")
            inbox.handle([record(1), record(2), record(3)])
        with pool.connection() as connection:
            connection.pgconn.untrace()
        # What ends a question to the server, one of a statement or one of a command such as COMMIT.
        asked = re.findall(r"\tF\t\d+\t(?:Sync|Query)", written.read_text())
    assert (len(asked), parsed.call_count) == (1, 3)
    assert rows(rig, "inventory_reservations") == 3


def test_the_inbox_remembers_what_its_effect_does_not(rig: Rig, pool: Pool) -> None:
    """An effect need not have a key of its own: processed_events alone says what was done."""
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    batch = [record(1), record(2)]
    inbox.handle(batch)
    rig.connection.execute("DELETE FROM inventory_reservations")
    inbox.handle(batch)
    assert rows(rig, "inventory_reservations") == 0


def test_a_repeat_within_one_poll_is_a_duplicate(rig: Rig, pool: Pool) -> None:
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    twice = record(1)
    inbox.handle([twice, record(2), twice])
    assert (inbox.tally.effects, inbox.tally.skipped) == (2, 1)


def test_what_came_again_is_known_of_each_consumer(rig: Rig, pool: Pool) -> None:
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    twice, once, poison = record(1), record(2), record(3, str(uuid.UUID(int=3)))
    reject(rig, f"new.order_id = '{uuid.UUID(int=3)}'", "RAISE 'no stock'")
    inbox.handle([twice, once, poison, twice])  # the batch is halved, and each repeat is noted once
    assert redeliveries(rig) == [("inventory", [1])]
    inbox.handle([twice, once, twice, twice])
    Inbox(rig.settings, pool, notifications.DOWNSTREAM, node="notification-1").handle([once])
    assert redeliveries(rig) == [("inventory", [1]), ("inventory", [1, 1, 1, 2])]
    assert (rows(rig, "inventory_reservations"), inbox.tally.skipped, inbox.tally.parked) == (2, 5, 1)


def redeliveries(rig: Rig) -> list[tuple[object, ...]]:
    return rig.connection.execute("SELECT consumer, outbox_ids FROM redeliveries ORDER BY came_at").fetchall()


def test_a_batch_that_comes_again_writes_next_to_nothing(rig: Rig) -> None:
    """Measured by EXPLAIN, for others write to the same server meanwhile; see what it counts in wal_bytes."""
    batch = Batch.of([record(number) for number in range(1, 2001)], inventory.DOWNSTREAM.decoder_of)
    asked = mock.Mock(**{"execute.return_value.fetchone.return_value": (0, False)})
    effect_of(inventory.DOWNSTREAM, node="inventory-1")(
        asked, [event for _, event in batch.readable.values()], Counter()
    )
    statement, parameters = asked.execute.call_args.args
    statement = "EXPLAIN (ANALYZE, WAL, FORMAT JSON) " + statement
    first, _, again = [
        wal_bytes(plan) for _ in range(3) for ((((plan,),),),) in [[rig.connection.execute(statement, parameters)]]
    ]
    assert rows(rig, "inventory_reservations") == 2000
    assert 0 < again < first / 20


def wal_bytes(plan: Any) -> int:
    """Sum up what a plan's INSERTs wrote; one that another one waits for is counted in both."""
    node = plan.get("Plan", plan)
    own = node.get("WAL Bytes", 0) if node["Node Type"] == "ModifyTable" else 0
    return own + sum(wal_bytes(child) for child in node.get("Plans", ()))


def slow_effects(rig: Rig, seconds: float) -> None:
    rig.connection.execute(
        sql.SQL(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN PERFORM pg_sleep({}); RETURN new; END $$;"
            "CREATE TRIGGER slow BEFORE INSERT ON inventory_reservations FOR EACH ROW EXECUTE FUNCTION slow()"
        ).format(seconds)
    )


def impatient(settings: Settings) -> Settings:
    return limited(settings, database_connect_s=1, database_statement_s=2, database_answer_s=20.0)


def test_a_batch_that_takes_longer_than_its_statement_may_is_halved_and_stays_in_order(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    slow_effects(rig, 0.03)
    settings = impatient(rig.settings)
    with database.open_pool(settings, name="slow", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        inbox.handle([record(number) for number in range(1, 151)])  # the first hundred of them are 3 s
        assert (inbox.tally.effects, inbox.tally.processed, inbox.tally.dead) == (150, 150, 0)
        assert "its effect is slow" in inbox.work().trouble
        said = capfd.readouterr().out
        assert (said.count("effect_slow"), "statement timeout" in said) == (1, True)
        transactions = rig.connection.execute(
            "SELECT min(outbox_id), max(outbox_id), count(*) FROM processed_events GROUP BY xmin"
            " ORDER BY min(processed_at)"
        ).fetchall()
        assert len(transactions) > 1
        assert [first for first, _, _ in transactions] == sorted(first for first, _, _ in transactions)
        assert all(last - first + 1 == size for first, last, size in transactions), "neighbours stay together"
        rig.connection.execute("DROP TRIGGER slow ON inventory_reservations")
        numbers = itertools.count(151)

        def recovers() -> bool:
            inbox.handle([record(next(numbers)) for _ in range(500)])
            return inbox.work().trouble == ""

        rig.wait("the end of its trouble", recovers)


def test_an_event_that_alone_is_not_done_in_time_is_kept_and_named(rig: Rig) -> None:
    settings = impatient(rig.settings)
    batch = Batch.of([record(1), record(2)], inventory.DOWNSTREAM.decoder_of)
    with database.open_pool(settings, name="slow", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        with rig.no_reservations():
            with ThreadPoolExecutor(1) as thread:
                applied = thread.submit(inbox.apply, batch)
                rig.wait("its trouble", lambda: "has run for" in inbox.work().trouble)
                assert isinstance(applied.exception(), SLOW)
            assert "its effect is slow: 1 event, not done in time" in inbox.work().trouble
            assert len(batch.readable) == 2
        inbox.apply(batch)
    assert (inbox.tally.effects, batch.settled) == (2, batch.records)


def test_what_is_done_of_a_batch_that_is_given_up_need_not_come_again(rig: Rig) -> None:
    """Of each partition, the records before the first that is not done."""
    slow_effects(rig, 0.03)
    settings = impatient(rig.settings)
    records = [record(number)._replace(partition=number % 3, offset=number) for number in range(1, 151)]
    batch = Batch.of(records, inventory.DOWNSTREAM.decoder_of)
    with database.open_pool(settings, name="slow", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        thread = threading.Thread(target=inbox.apply, args=(batch,))
        thread.start()
        rig.wait("the first of its transactions", lambda: bool(batch.settled))
        batch.given_up = True
        thread.join()
    done = rows(rig, "inventory_reservations")
    assert 0 < done < 150
    assert batch.settled == records[:done]


def test_consumers_know_nothing_of_each_other(rig: Rig, pool: Pool) -> None:
    batch = [record(1), record(2)]
    Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1").handle(batch)
    Inbox(rig.settings, pool, notifications.DOWNSTREAM, node="notification-1").handle(batch)
    assert rows(rig, "inventory_reservations") == rows(rig, "notifications_log") == 2
    assert rows(rig, "processed_events") == 4


def reject(rig: Rig, condition: str, raised: str) -> None:
    """Let PostgreSQL reject the reservations that a condition on `new` holds for."""
    rig.connection.execute(
        sql.SQL(
            "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN IF {} THEN {}; END IF; RETURN new; END $$;"
            "CREATE TRIGGER reject BEFORE INSERT ON inventory_reservations FOR EACH ROW EXECUTE FUNCTION reject()"
        ).format(sql.SQL(condition), sql.SQL(raised))
    )


def test_dedup_row_and_effect_commit_together_or_not_at_all(rig: Rig, pool: Pool) -> None:
    """A crash between the two would lose the effect for ever: the redelivery would look like a duplicate."""
    reject(rig, "true", "RAISE 'no right to it' USING ERRCODE = 'insufficient_privilege'")
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    with pytest.raises(StoppedError, match="no right to it"):  # no event's fault
        inbox.handle([record(1)])
    assert rows(rig, "processed_events") == 0
    assert read_topic(rig.settings, dead_letters=True) == []
    rig.connection.execute("DROP TRIGGER reject ON inventory_reservations")
    inbox.handle([record(1)])
    assert rows(rig, "inventory_reservations") == 1


def test_what_postgres_rejects_for_itself_alone_is_parked_and_the_rest_goes_through(rig: Rig, pool: Pool) -> None:
    codes = ["raise_exception", "BREW1", "check_violation", "numeric_value_out_of_range", "program_limit_exceeded"]
    rejected = [record(number, str(uuid.UUID(int=number))) for number in range(1, len(codes) + 1)]
    verdicts = [
        f"ELSIF new.order_id = '{uuid.UUID(int=number)}' THEN RAISE 'no stock' USING ERRCODE = '{code}'"
        for number, code in enumerate(codes, 1)
    ]
    reject(rig, "false", f"NULL; {'; '.join(verdicts)}")
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    batch = [record(number) for number in range(100, 130)]
    batch[2:2], batch[20:20] = rejected[:2], rejected[2:]
    inbox.handle([*batch, batch[0]])
    tally = inbox.tally
    assert (tally.effects, tally.parked, tally.skipped, tally.processed) == (30, 5, 1, 36)
    with database.connect(rig.settings) as connection:
        found = parking.find(connection, ["inventory"])
    assert sorted((each.key.encode(), each.value) for each in found) == sorted(
        (each.key or b"", each.value or b"") for each in rejected
    )
    assert {each.record.headers == rejected[0].headers for each in found if each.outbox_id == 1} == {True}
    assert {(each.reason, each.attempts) for each in found} == {("postgres rejected its effect: no stock", 5)}
    assert rows(rig, "processed_events") == 30
    assert read_topic(rig.settings, dead_letters=True) == []


def test_a_retry_goes_on_where_the_try_before_it_failed(rig: Rig, pool: Pool) -> None:
    """Half of a split batch is committed when the database goes away: it is no duplicate of itself."""
    bad = str(uuid.UUID(int=1))  # its effect comes first
    # The whole is rejected, the first half passes, and the second ends the session once.
    reject(
        rig,
        f"new.order_id = '{bad}'",
        "IF (SELECT count(*) FROM inventory_reservations) > 0 AND nextval('looks') = 1"
        " THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(9); END IF; RAISE 'no stock'",
    )
    rig.connection.execute("CREATE SEQUENCE looks")
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    batch = inbox.read([*(record(number) for number in range(1, 8)), record(8, bad)])
    with pytest.raises(database.UNAVAILABLE):
        inbox.apply(batch)
    for _ in range(inventory.DOWNSTREAM.attempts - 1):
        with pytest.raises(FailingError, match="1 event failed: postgres rejected its effect: no stock"):
            inbox.apply(batch)
    inbox.apply(batch)
    assert rig.connection.execute("SELECT last_value > 1 FROM looks").fetchone() == (True,), "there was a retry"
    assert (inbox.tally.effects, inbox.tally.parked, inbox.tally.skipped, inbox.tally.processed) == (7, 1, 0, 8)


def test_a_zombie_finds_its_rows_taken(rig: Rig) -> None:
    """Two owners of one batch, stepped by hand: the second waits for the first's commit, then takes nothing."""
    batch = [record(number) for number in range(1, 6)]
    with (
        database.open_pool(rig.settings, name="zombie", size=1) as hers,
        database.open_pool(rig.settings, name="owner", size=1) as theirs,
    ):
        zombie = Inbox(rig.settings, hers, inventory.DOWNSTREAM, node="zombie")
        owner = Inbox(rig.settings, theirs, inventory.DOWNSTREAM, node="owner")
        # Holds both back at their effect, the zombie with its dedup rows taken and uncommitted.
        with rig.no_reservations():
            first = threading.Thread(target=zombie.handle, args=(batch,))
            first.start()
            rig.wait("the zombie at the gate", lambda: waiting(rig, "zombie"))
            second = threading.Thread(target=owner.handle, args=(list(reversed(batch)),))
            second.start()
            rig.wait("the owner waiting too", lambda: waiting(rig, "owner"))
        first.join()
        second.join()
    assert zombie.tally.effects + owner.tally.effects == 5
    assert zombie.tally.skipped + owner.tally.skipped == 5
    assert rows(rig, "inventory_reservations") == rows(rig, "processed_events") == 5


def waiting(rig: Rig, name: str) -> bool:
    found = rig.connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = %s AND wait_event_type = 'Lock'",
        (name,),
    )
    return found.fetchone() is not None


def test_a_lost_connection_is_retried_with_the_same_batch(rig: Rig, pool: Pool) -> None:
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    inbox.handle([record(1)])
    rig.connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'test'"
    )
    # The pool checks a connection before it hands it out: no error reaches the batch.
    inbox.handle([record(2)])
    assert inbox.tally.effects == 2


def test_a_consumer_that_stood_still_in_its_transaction_goes_on(rig: Rig) -> None:
    """PostgreSQL ends a paused process's session; the process, awake again, must take that for an outage."""
    with psycopg.connect(rig.settings.database_url) as paused:
        paused.execute("SET idle_in_transaction_session_timeout = '100ms'")
        with pytest.raises(database.UNAVAILABLE):
            rig.wait("the end of its session", lambda: paused.execute("SELECT pg_sleep(0)") is None, timeout_s=20)
