"""A row that no partition is there for: whoever writes it makes the partition, and rubbish ids make none."""

import contextlib
import itertools
import random
import uuid
from collections.abc import Sequence

import psycopg
import pytest

from brewctl.client import OrderClient
from brewctl.delivery import database
from brewctl.delivery.broker import Producer, Record
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.schema import no_partition, parts, setup
from brewctl.doctor import partitions as doctor_partitions
from brewctl.doctor.finding import Verdict
from brewctl.errors import BrewError
from brewctl.roles import inventory
from tests.conftest import Rig
from tests.integration.reading import read_topic
from tests.integration.test_inbox import record, rows

EDGE = 1_000_000  # where the first partition of a new database ends
FAR = 10**9  # another outbox's first id
MOST = 10**15  # no outbox comes beyond it


def partitions(connection: psycopg.Connection[tuple[object, ...]], table: str) -> list[tuple[object, ...]]:
    return connection.execute("SELECT lower, upper FROM partitions_of(%s)", (table,)).fetchall()


def drop_those_ahead(rig: Rig, table: str) -> None:
    for name, lower in rig.connection.execute("SELECT name::text, lower FROM partitions_of(%s)", (table,)).fetchall():
        if lower is not None:
            rig.connection.execute(f"DROP TABLE {name}".encode())
    assert len(partitions(rig.connection, table)) == 1


def come_to_the_edge(rig: Rig, *, left: int) -> None:
    """The outbox has no more than so many ids that there is a partition for."""
    drop_those_ahead(rig, "outbox")
    rig.connection.execute(f"ALTER TABLE outbox ALTER id RESTART WITH {EDGE - left}".encode())


def test_orders_and_cancels_go_on_where_nobody_makes_partitions_ahead(rig: Rig) -> None:
    come_to_the_edge(rig, left=2)
    node = rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    with OrderClient([node.address]) as client:
        orders = [client.create("c1", amount_cents=1, currency="EUR") for _ in range(4)]
        assert partitions(rig.connection, "outbox") == [(None, EDGE), (EDGE, 2 * EDGE)]
        assert [row_id for row_id, _ in rows_of_outbox(rig)[:2]] == [EDGE - 2, EDGE - 1]
        rig.connection.execute("TRUNCATE outbox")
        drop_those_ahead(rig, "outbox")
        done = rig.brewctl("cancel-order", orders[0], "--addr", node.address)
        assert done.returncode == 0, done.stderr
        assert [kind for _, kind in rows_of_outbox(rig)] == ["order.cancelled"]
    # Where it can't be made the callers are told to come again, and the log says what to run.
    drop_those_ahead(rig, "outbox")
    rig.connection.execute("ALTER FUNCTION make_partition RENAME TO not_there")
    with OrderClient([node.address], timeout_s=2) as client, pytest.raises(BrewError):
        client.create("c1", amount_cents=1, currency="EUR")
    assert "no_partition" in node.log.read_text()
    assert "`brewctl db retention`" in node.log.read_text()
    rig.connection.execute("ALTER FUNCTION not_there RENAME TO make_partition")
    with OrderClient([node.address]) as client:
        client.create("c1", amount_cents=1, currency="EUR")


def rows_of_outbox(rig: Rig) -> list[tuple[object, ...]]:
    return rig.connection.execute("SELECT id, event_type FROM outbox ORDER BY id").fetchall()


def test_a_publisher_makes_the_next_partition_for_those_who_call_outbox_add(rig: Rig, pool: Pool) -> None:
    drop_those_ahead(rig, "outbox")
    publisher = Publisher(rig.settings, pool, node="publisher-1")
    asked = "SELECT outbox_add(NULL, 'a-1', 'e', 'x')"
    with contextlib.closing(Producer(rig.settings, node="publisher-1")) as producer:

        def published(next_id: int) -> int:
            """Add an event, publish it, and return how many partitions there are then."""
            rig.connection.execute(f"ALTER TABLE outbox ALTER id RESTART WITH {next_id}".encode())
            assert rig.connection.execute(asked).fetchone() == (next_id,)
            assert publisher.publish_batch(producer) == 1
            return len(partitions(rig.connection, "outbox"))

        # Once in a thousand ids it looks.
        assert [published(next_id) for next_id in (1, 999, 1000)] == [1, 1, 2]
    assert partitions(rig.connection, "outbox") == [(None, EDGE), (EDGE, 2 * EDGE)]


def test_an_event_that_finds_no_partition_has_its_effect_once(rig: Rig, pool: Pool) -> None:
    drop_those_ahead(rig, "processed_events")
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    batch = [record(number) for number in (EDGE - 1, EDGE, 3 * EDGE, EDGE + 1)]
    inbox.handle(batch)
    inbox.handle(batch)
    assert (inbox.tally.effects, inbox.tally.skipped, inbox.tally.dead) == (4, 4, 0)
    assert rows(rig, "inventory_reservations") == rows(rig, "processed_events") == 4
    assert partitions(rig.connection, "processed_events") == [(None, EDGE), (EDGE, 2 * EDGE), (3 * EDGE, 4 * EDGE)]


def test_events_of_another_outbox_have_their_effects_once_beside_the_own_ones(rig: Rig, pool: Pool) -> None:
    """An outbox of another database writes to the same topic, in a range of ids of its own."""
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    before = partitions(rig.connection, "processed_events")
    batch = [record(number) for number in (1, FAR + 5, 2, FAR + EDGE, FAR - 1, FAR + 6)]
    for _ in range(2):
        inbox.handle(batch)
    assert (inbox.tally.effects, inbox.tally.skipped, inbox.tally.dead) == (6, 6, 0)
    assert rows(rig, "inventory_reservations") == rows(rig, "processed_events") == 6
    edges = [FAR - EDGE, FAR, FAR + EDGE, FAR + 2 * EDGE]
    assert partitions(rig.connection, "processed_events") == [*before, *itertools.pairwise(edges)]


def make(rig: Rig, row_id: int) -> None:
    rig.connection.execute("SELECT make_partition('processed_events', %s)", (row_id,))


def reasons(rig: Rig) -> set[str]:
    letters: Sequence[Record] = read_topic(rig.settings, dead_letters=True)
    return {(dict(letter.headers)["dlq-reason"] or b"").decode() for letter in letters}


def test_rubbish_ids_make_eight_partitions_at_most_and_the_rest_are_dead_letters(rig: Rig, pool: Pool) -> None:
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    before = partitions(rig.connection, "processed_events")
    chance = random.Random(7)
    far = {chance.randrange(20 * EDGE, MOST) for _ in range(500)}
    absurd = {2**63 - 1, MOST + 1, *(chance.randrange(MOST, 2**63) for _ in range(500))}
    inbox.handle([record(number) for number in (1, *far, *absurd, 2)])
    made = set(partitions(rig.connection, "processed_events")) - {*before}
    assert len(made) == 8
    assert (inbox.tally.effects, inbox.tally.parked) == (2 + 8, 0)
    assert inbox.tally.dead == len(far) + len(absurd) - 8
    assert rows(rig, "inventory_reservations") == 10
    refused = "processed_events has no partition for id "
    stray = ", and 8 for stray ids: take those of rubbish away in psql, then run `brewctl dlq redrive`"
    beyond = f", as no outbox comes beyond {MOST}: settle it with `brewctl dlq drop`"
    said = reasons(rig)
    assert {f"{refused}{number}{beyond}" for number in absurd} == {each for each in said if each.endswith(beyond)}
    assert len([each for each in said if each.startswith(refused) and each.endswith(stray)]) == len(far) - 8
    # Events of this outbox, and those next to what is there, go on: however far it is to the others.
    edges = [edge for part in made for edge in part]
    inbox.handle([record(8 * EDGE), *(record(int(str(edge)) - place) for edge in edges for place in (0, 1))])
    assert inbox.tally.dead == len(far) + len(absurd) - 8
    assert len(partitions(rig.connection, "processed_events")) == len(before) + 8 + 2 * 8 + 1


def test_no_id_is_too_large_or_too_small_for_an_answer(rig: Rig) -> None:
    for row_id in (MOST + 1, 2**63 - 1):
        with pytest.raises(psycopg.errors.NumericValueOutOfRange, match=f"no outbox comes beyond {MOST}"):
            make(rig, row_id)
    rig.connection.execute("ALTER TABLE outbox ALTER id RESTART WITH 9223372036854775000")
    for table in ("outbox", "processed_events"):
        rig.connection.execute("SELECT make_partition(%s, 9223372036854775000)", (table,))
        assert partitions(rig.connection, table)[-1] == (9223372036854000000, 2**63 - 1)
    rig.connection.execute(f"DROP TABLE {partition_of(rig, EDGE - 1)}".encode())
    for row_id in (-1, -(2**63)):
        with pytest.raises(psycopg.errors.NumericValueOutOfRange, match="with ids below 0 were dropped"):
            make(rig, row_id)


def partition_of(rig: Rig, row_id: int) -> str:
    asked = "SELECT name::text FROM partitions_of('processed_events') WHERE %s < upper ORDER BY upper LIMIT 1"
    (name,) = rig.connection.execute(asked, (row_id,)).fetchone() or ("",)
    return str(name)


def test_an_event_whose_dedup_row_may_have_been_dropped_is_a_dead_letter(rig: Rig, pool: Pool) -> None:
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    old = record(5)
    inbox.handle([old])
    rig.connection.execute("UPDATE retention SET dropped_below = %s", (EDGE,))
    rig.connection.execute("DROP TABLE processed_events_p0, outbox_p0")
    rig.connection.execute("DELETE FROM inventory_reservations")
    inbox.handle([old, record(EDGE + 5)])
    assert (inbox.tally.effects, inbox.tally.dead, inbox.tally.parked) == (2, 1, 0)
    assert rows(rig, "inventory_reservations") == 1
    [said] = reasons(rig)
    assert said == f"rows of processed_events with ids below {EDGE} were dropped, and this one is 5"
    # As docs/operations.md has it for a restored outbox, whose new events have such ids.
    rig.connection.execute("UPDATE retention SET dropped_below = 5")
    inbox.handle([old])
    assert (inbox.tally.effects, inbox.tally.dead) == (3, 1)


def test_a_partition_that_can_not_be_made_keeps_the_batch(rig: Rig, pool: Pool) -> None:
    drop_those_ahead(rig, "processed_events")
    rig.connection.execute("ALTER FUNCTION make_partition RENAME TO not_there")
    inbox = Inbox(rig.settings, pool, inventory.DOWNSTREAM, node="inventory-1")
    batch = inbox.read([record(EDGE)])
    for _ in range(10):
        with pytest.raises(no_partition.NoPartitionError):
            inbox.apply(batch)
    rig.connection.execute("ALTER FUNCTION not_there RENAME TO make_partition")
    inbox.apply(batch)
    assert (inbox.tally.effects, inbox.tally.dead, inbox.tally.parked) == (1, 0, 0)


def test_without_the_outbox_stray_ids_make_few_partitions(rig: Rig) -> None:
    """A downstream's own database does not know how far the outbox has come."""
    rig.connection.execute("DROP SCHEMA public CASCADE")
    rig.connection.execute("CREATE SCHEMA public")
    with database.connect(rig.settings) as connection:
        setup.initialize(connection, tables=parts.INBOX_TABLES)
    before = len(partitions(rig.connection, "processed_events"))
    make(rig, 57 * EDGE + 3)  # a downstream that came late
    for number in range(58, 80):
        make(rig, number * EDGE)
    assert len(partitions(rig.connection, "processed_events")) == before + 23
    chance, refused = random.Random(7), 0
    for row_id in (2**63 - 1, -(2**63), *(chance.randrange(2**63) for _ in range(50)), *range(10**9, 10**10, 10**8)):
        try:
            make(rig, row_id)
        except psycopg.errors.NumericValueOutOfRange:
            refused += 1
    assert len(partitions(rig.connection, "processed_events")) == before + 23 + 7
    assert refused > 100
    make(rig, 80 * EDGE)
    make(rig, 56 * EDGE)
    # What retention has dropped everywhere says how far the outbox has come.
    rig.connection.execute("UPDATE retention SET dropped_below = %s", (20_000 * EDGE,))
    make(rig, 20_000 * EDGE)
    assert len(partitions(rig.connection, "processed_events")) == before + 23 + 7 + 3


def test_doctor_says_when_few_are_left(rig: Rig) -> None:
    [found] = doctor_partitions.check(rig.connection, doctor_partitions.last_row(rig.connection))
    assert (found.verdict, found.found) == (Verdict.OK, "ahead are 4 of outbox, 4 of processed_events")
    drop_those_ahead(rig, "outbox")
    rig.connection.execute("SELECT make_partition('outbox', NULL)")
    [found] = doctor_partitions.check(rig.connection, doctor_partitions.last_row(rig.connection))
    assert found.verdict is Verdict.WARN
    assert found.found.startswith("ahead are 1 of outbox, 4 of processed_events: ")
    assert found.mend == "run `brewctl db retention`"


def test_partitions_of_stray_ids_are_not_ahead(rig: Rig) -> None:
    for place in range(3):
        make(rig, FAR + place * EDGE)
    [found] = doctor_partitions.check(rig.connection, doctor_partitions.last_row(rig.connection))
    assert (found.verdict, found.found) == (Verdict.OK, "ahead are 4 of outbox, 4 of processed_events")
    drop_those_ahead(rig, "processed_events")
    for place in range(3):
        make(rig, FAR + place * EDGE)
    for row_id in (0, EDGE + 5):  # also where the last id itself has none
        rig.connection.execute("INSERT INTO outbox (id, aggregate_id, topic, payload) OVERRIDING SYSTEM VALUE"
                               " VALUES (%s, 'a', 't', 'x')", (row_id,))  # fmt: skip
        [found] = doctor_partitions.check(rig.connection, doctor_partitions.last_row(rig.connection))
        assert found.verdict is Verdict.WARN
        assert ", 0 of processed_events: " in found.found


def test_only_the_two_tables_have_partitions_made(rig: Rig) -> None:
    for name in ("orders", "pg_class", "outbox; DROP TABLE orders", None):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            rig.connection.execute("SELECT make_partition(%s::text, 5)", (name,))


def test_what_a_caller_has_put_into_its_temporary_schema_is_not_taken_for_ours(rig: Rig) -> None:
    caller = f"brew_caller_{uuid.uuid4().hex[:8]}"
    rig.connection.execute(f"CREATE ROLE {caller}".encode())
    try:
        rig.connection.execute(f"SET ROLE {caller}".encode())
        rig.connection.execute("CREATE TEMP VIEW retention AS SELECT 1/0 AS partition_rows, 0 AS dropped_below")
        rig.connection.execute("CREATE TEMP TABLE outbox (id bigint)")
        for _ in range(2):
            rig.connection.execute("SELECT make_partition('outbox', NULL)")
    finally:
        rig.connection.execute("RESET ROLE")
        rig.connection.execute("DROP VIEW pg_temp.retention; DROP TABLE pg_temp.outbox")
        rig.connection.execute(f"DROP ROLE {caller}".encode())
    assert len(partitions(rig.connection, "outbox")) == 7
