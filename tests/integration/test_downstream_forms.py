"""The three forms of a downstream on real PostgreSQL: what each is given, what it writes, and what it writes once."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.errors import UsageError
from brewctl.proto.orders_pb2 import ORDER_STATUS_NEW, OrderCancelled, OrderCreated
from tests.conftest import Rig, open_rig

BOTH = ("order.created", "order.cancelled")
FORMS = ("sql", "batch", "handler")
AT = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)

pytestmark = pytest.mark.usefixtures("one_try")


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("forms")) as rig:
        rig.connection.execute(
            "CREATE TABLE seen (place bigserial, outbox_id bigint, event_id uuid, type text, key text)"
        )
        yield rig


@pytest.fixture(autouse=True)
def _empty(rig: Rig) -> None:
    rig.connection.execute("TRUNCATE seen, processed_events, redeliveries; DROP TABLE IF EXISTS own")


def record(
    outbox_id: int,
    message: Any = None,
    *,
    event_type: str = "order.created",
    event_id: str | None = None,
    seq: int | None = None,
    key: str | None = None,
    partition: int = 0,
    offset: int | None = None,
) -> Record:
    message = OrderCreated(order_id=str(uuid.UUID(int=outbox_id))) if message is None else message
    key = key or f"order-{outbox_id}"
    headers = events.headers_for(
        outbox_id, key, event_type, node="order-1", tenant_id="tea", event_id=event_id, seq=seq
    )
    place = outbox_id if offset is None else offset
    return Record("topic", key.encode(), message.SerializeToString(), headers, partition, place)


def created(outbox_id: int, **fields: Any) -> Record:
    order = OrderCreated(order_id=str(uuid.UUID(int=outbox_id)), **fields)
    return record(outbox_id, order, event_id=str(uuid.UUID(int=1000 + outbox_id)), seq=1)


def cancelled(outbox_id: int, **fields: Any) -> Record:
    message = OrderCancelled(order_id=str(uuid.UUID(int=outbox_id)), **fields)
    return record(outbox_id, message, event_type="order.cancelled")


def statement(sql: str, **own: Any) -> Downstream:
    return Downstream("own", sql=sql, **{"events": BOTH, **own})


def handle(rig: Rig, pool: Pool, downstream: Downstream, *records: Record) -> Inbox:
    inbox = Inbox(rig.settings, pool, downstream, node="own-1")
    inbox.handle(records)
    return inbox


def rows(rig: Rig, query: str) -> list[Any]:
    return rig.connection.execute(query.encode()).fetchall()


def seeing(form: str) -> Downstream:
    """Return a downstream that writes down each event that it gets, in the order in which it gets them."""
    insert = "INSERT INTO seen (outbox_id, event_id, type, key) "

    def one(event: Any, tx: Any) -> None:
        tx.execute(insert + "VALUES (%s, %s, %s, %s)", (event.outbox_id, event.id, event.type, event.key))

    def batch(fresh: Sequence[Any], tx: Any) -> None:
        for event in fresh:
            one(event, tx)

    forms: dict[str, Any] = {
        "sql": insert + "SELECT outbox_id, event_id, type, key FROM fresh ORDER BY outbox_id",
        "batch": batch,
        "handler": one,
    }
    return Downstream("own", **{form: forms[form]}, events=BOTH)


# What each form does alike.


@pytest.mark.parametrize("form", FORMS)
def test_an_event_has_its_effect_once(rig: Rig, pool: Pool, form: str) -> None:
    first, second, without = created(1), created(2), record(3)
    inbox = handle(rig, pool, seeing(form), first, second, first, without, without)
    inbox.handle([second, without, created(4)])
    assert [row[0] for row in rows(rig, "SELECT outbox_id FROM seen ORDER BY place")] == [1, 2, 3, 4]
    assert (inbox.tally.effects, inbox.tally.duplicates) == (4, 4)
    assert rows(rig, "SELECT outbox_ids FROM redeliveries ORDER BY came_at") == [([1, 3],), ([2, 3],)]


@pytest.mark.parametrize("form", FORMS)
def test_an_outbox_id_that_is_used_again_is_another_event(rig: Rig, pool: Pool, form: str) -> None:
    """As after a restored dump. Also both in one poll; and one without an event id is a repeat of either."""
    ids = [str(uuid.UUID(int=number)) for number in (1, 2, 3)]
    first, again, later = (record(7, event_id=event_id, offset=place) for place, event_id in enumerate(ids))
    inbox = handle(rig, pool, seeing(form), first, again, first, again, record(7))
    inbox.handle([later])
    inbox.handle([first, again, later, record(7)])
    assert [str(row[0]) for row in rows(rig, "SELECT event_id FROM seen ORDER BY place")] == ids
    assert (inbox.tally.effects, inbox.tally.duplicates, inbox.tally.dead) == (3, 7, 0)


@pytest.mark.parametrize("form", FORMS)
def test_an_event_without_an_id_is_a_repeat_of_any_that_has_its_outbox_id(rig: Rig, pool: Pool, form: str) -> None:
    inbox = handle(rig, pool, seeing(form), record(1), record(1, event_id=str(uuid.uuid4())))
    inbox.handle([record(1, event_id=str(uuid.uuid4())), record(1)])
    assert (inbox.tally.effects, inbox.tally.duplicates) == (1, 3)


@pytest.mark.parametrize("form", ["batch", "handler"])
def test_a_handler_gets_the_events_of_each_partition_in_their_order(rig: Rig, pool: Pool, form: str) -> None:
    numbers = [9, 3, 7, 1, 8, 2]
    polled = [record(number, partition=place % 2, offset=place) for place, number in enumerate(numbers)]
    handle(rig, pool, seeing(form), *polled)
    assert [row[0] for row in rows(rig, "SELECT outbox_id FROM seen ORDER BY place")] == numbers


@pytest.mark.parametrize("form", FORMS)
def test_other_types_are_skipped_and_counted(rig: Rig, pool: Pool, form: str) -> None:
    inbox = handle(rig, pool, seeing(form), created(1), record(2, event_type="order.shipped"), cancelled(3))
    assert (inbox.tally.effects, inbox.tally.others) == (2, 1)


@pytest.mark.parametrize("form", FORMS)
def test_an_error_leaves_neither_effect_nor_dedup_row(rig: Rig, pool: Pool, form: str) -> None:
    rig.connection.execute("CREATE TABLE own (n int)")

    def fails(_events: Any, tx: Any) -> None:
        tx.execute("INSERT INTO own VALUES (1)")
        tx.execute("SELECT nothing_of_this_name")

    own: Any = fails if form != "sql" else "INSERT INTO own SELECT nothing_of_this_name FROM fresh"
    with pytest.raises(psycopg.errors.UndefinedColumn):
        handle(rig, pool, Downstream("own", **{form: own}, events=BOTH), created(1), created(2))
    assert rows(rig, "SELECT FROM own UNION ALL SELECT FROM processed_events") == []


def test_a_batch_handler_is_called_once_and_not_for_nothing(rig: Rig, pool: Pool) -> None:
    calls: list[list[int]] = []
    downstream = Downstream("own", batch=lambda fresh, _tx: calls.append([e.outbox_id for e in fresh]), events=BOTH)
    inbox = handle(rig, pool, downstream, created(1), created(2))
    inbox.handle([created(2), created(1)])
    inbox.handle([created(1), created(3)])
    assert calls == [[1, 2], [3]]


# The SQL form: what `fresh` has.


def test_fresh_has_the_fields_of_both_events_of_the_story(rig: Rig, pool: Pool) -> None:
    columns = (
        "event_id, outbox_id, type, key, seq, tenant_id, order_id, customer_id, amount_cents, currency, status,"
        " created_at, trace_id, reason, cancelled_at"
    )
    rig.connection.execute(
        "CREATE TABLE own (event_id uuid, outbox_id bigint, type text, key text, seq bigint, tenant_id text,"
        " order_id uuid, customer_id text, amount_cents bigint, currency text, status text, created_at timestamptz,"
        " trace_id text, reason text, cancelled_at timestamptz)"
    )
    at = timestamp_pb2.Timestamp()
    at.FromDatetime(AT)
    order = {"customer_id": 'al"i\\ce, {né}', "amount_cents": 450, "currency": "EUR", "status": ORDER_STATUS_NEW}
    insert = f"INSERT INTO own SELECT {columns} FROM fresh"
    inbox = handle(
        rig,
        pool,
        statement(insert),
        created(1, **order, created_at=at, trace_id="t1"),
        cancelled(2, reason="NULL", cancelled_at=at, trace_id="t2"),
        created(3),
    )
    assert inbox.tally.effects == 3
    a, b, c = rows(rig, "SELECT * FROM own ORDER BY outbox_id")
    ids = [uuid.UUID(int=number) for number in range(4)]
    assert a == (uuid.UUID(int=1001), 1, "order.created", "order-1", 1, "tea", ids[1], 'al"i\\ce, {né}', 450, "EUR",
                 "ORDER_STATUS_NEW", AT, "t1", None, None)  # fmt: skip
    assert b == (
        None,
        2,
        "order.cancelled",
        "order-2",
        None,
        "tea",
        ids[2],
        None,
        None,
        None,
        None,
        None,
        "t2",
        "NULL",
        AT,
    )
    assert c == (uuid.UUID(int=1003), 3, "order.created", "order-3", 1, "tea", ids[3], "", 0, "",
                 "ORDER_STATUS_UNSPECIFIED", None, "", None, None)  # fmt: skip


def payment() -> Any:
    """Return the class of a message that the story knows nothing of, with a field of each type."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{uuid.uuid4().hex}.proto", package="shop", syntax="proto3")
    file.package = f"shop{uuid.uuid4().hex}"
    file.dependency.append("google/protobuf/timestamp.proto")
    message = file.message_type.add(name="Payment")
    kinds = descriptor_pb2.FieldDescriptorProto
    fields = {
        "order_id": kinds.TYPE_STRING, "type": kinds.TYPE_STRING, "event_id": kinds.TYPE_STRING,
        "i32": kinds.TYPE_INT32, "u32": kinds.TYPE_UINT32, "i64": kinds.TYPE_SINT64, "u64": kinds.TYPE_FIXED64,
        "ok": kinds.TYPE_BOOL,
        "real": kinds.TYPE_DOUBLE, "single": kinds.TYPE_FLOAT, "blob": kinds.TYPE_BYTES, "Note": kinds.TYPE_STRING,
    }  # fmt: skip
    for number, (name, kind) in enumerate(fields.items(), start=1):
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    message.field.add(name="paid_at", number=30, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL,
                      type_name=".google.protobuf.Timestamp")  # fmt: skip
    message.field.add(name="maybe", number=31, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL, proto3_optional=True,
                      oneof_index=0)  # fmt: skip
    message.oneof_decl.add(name="_maybe")
    message.field.add(name="many", number=32, type=kinds.TYPE_INT64, label=kinds.LABEL_REPEATED)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Payment"))


PAYMENT = payment()


def paying(sql: str) -> Downstream:
    decoders = {"payment.received": PAYMENT.FromString}
    return statement(sql, events=("payment.received", "order.cancelled"), decoders=decoders)


def paid(outbox_id: int, **fields: Any) -> Record:
    return record(outbox_id, PAYMENT(**fields), event_type="payment.received")


def test_fresh_has_the_fields_of_an_own_message(rig: Rig, pool: Pool) -> None:
    names = 'type, event_id, data_type, data_event_id, i32, u32, i64, u64, ok, real, single, blob, "Note", maybe'
    insert = f"CREATE TABLE own AS SELECT {names} FROM fresh"
    with pytest.raises(UsageError):
        paying(insert)
    rig.connection.execute(
        "CREATE TABLE own (type text, event_id uuid, data_type text, data_event_id text, i32 int, u32 bigint,"
        ' i64 bigint, u64 numeric, ok boolean, real float8, single float8, blob bytea, "Note" text, maybe bigint)'
    )
    first = {"type": "card", "event_id": "e1", "i32": -(2**31), "u32": 2**32 - 1, "i64": -(2**63), "u64": 2**64 - 1}
    more = {"ok": True, "real": 0.1, "single": 0.5, "blob": b"\x00\xff", "Note": 'a,"b"\\', "maybe": 0}
    handle(
        rig, pool, paying(f"INSERT INTO own SELECT {names} FROM fresh"), paid(1, **first, **more), paid(2), cancelled(3)
    )
    assert rows(rig, "SELECT * FROM own ORDER BY maybe NULLS LAST, type DESC") == [
        ("payment.received", None, *first.values(), *more.values()),
        ("payment.received", None, "", "", 0, 0, 0, 0, False, 0.0, 0.0, b"", "", None),
        ("order.cancelled", *[None] * 13),
    ]


COLUMNS = ("seq", "tenant_id", "i32", "u32", "u64", "ok", "real", "blob", "maybe", "paid_at", "data_type", "reason")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_column_may_be_null_in_every_event(rig: Rig, pool: Pool, column: str, count: int) -> None:
    make = paid if column == "reason" else cancelled
    downstream = paying(f"INSERT INTO seen (outbox_id, type) SELECT outbox_id, {column}::text FROM fresh")
    assert handle(rig, pool, downstream, *(make(number) for number in range(1, count + 1))).tally.effects == count


def test_a_time_that_is_none_is_the_fault_of_its_event_alone(rig: Rig, pool: Pool) -> None:
    downstream = paying("INSERT INTO seen (outbox_id, type) SELECT outbox_id, paid_at::text FROM fresh")
    at, never = timestamp_pb2.Timestamp(seconds=1), timestamp_pb2.Timestamp(seconds=2**60)
    inbox = Inbox(rig.settings, pool, downstream, node="own-1")
    batch = inbox.read([paid(1, paid_at=at), paid(2, paid_at=never), paid(3), paid(4, paid_at=at)])
    with contextlib.suppress(Exception):  # where a dead letter goes is another test's
        inbox.apply(batch)
    assert [row[0] for row in rows(rig, "SELECT outbox_id FROM seen ORDER BY 1")] == [1, 3, 4]


@pytest.mark.parametrize("order_id", ["no uuid", "{", "", "a,b", 'x"', "\\", "null,null", "a\0b"])
def test_a_foreign_value_stays_in_its_own_row(rig: Rig, pool: Pool, order_id: str) -> None:
    """Ids and numbers are sent as one text: no value may be read as two, or as another event's."""
    decoders = {"order.created": OrderCreated.FromString}  # which looks at nothing
    rig.connection.execute("CREATE TABLE own (outbox_id bigint, order_id uuid NOT NULL, customer_id text)")
    downstream = statement("INSERT INTO own SELECT outbox_id, order_id, customer_id FROM fresh", decoders=decoders)
    foreign = record(2, OrderCreated(order_id=order_id))
    inbox = Inbox(rig.settings, pool, downstream, node="own-1")
    with contextlib.suppress(Exception):
        inbox.apply(inbox.read([created(1, customer_id='a","b'), foreign, created(3, customer_id="{c\\d")]))
    expected = [(1, uuid.UUID(int=1), 'a","b'), (3, uuid.UUID(int=3), "{c\\d")]
    assert rows(rig, "SELECT * FROM own ORDER BY 1") == expected


def test_a_field_of_two_types_is_refused_where_it_is_used(rig: Rig, pool: Pool) -> None:
    decoders = {"payment.received": PAYMENT.FromString}
    sql = "INSERT INTO seen (key) SELECT {} FROM fresh"
    made = statement(sql.format("order_id"), events=("order.created", "payment.received"), decoders=decoders)
    with pytest.raises(UsageError, match=r"order_id: uuid in order.created, text in payment.received"):
        Inbox(rig.settings, pool, made, node="own-1")
    other = statement(sql.format("blob"), events=("order.created", "payment.received"), decoders=decoders)
    Inbox(rig.settings, pool, other, node="own-1")


# The SQL form: what a statement may be.

FINE: dict[str, str] = {
    "alias": "INSERT INTO seen (key) SELECT f.customer_id FROM fresh AS f",
    "upper case": "INSERT INTO seen (key) SELECT CUSTOMER_ID FROM FRESH",
    "quoted": 'INSERT INTO seen (key) SELECT "customer_id" FROM "fresh"',
    "every column": "INSERT INTO seen (key) SELECT customer_id FROM (SELECT * FROM fresh) AS f",
    "alias's columns": "INSERT INTO seen (key) SELECT customer_id FROM (SELECT f.* FROM fresh f) AS f",
    "a row as json": "INSERT INTO seen (key) SELECT to_jsonb(f) ->> 'customer_id' FROM fresh AS f",
    "semicolon": "INSERT INTO seen (key) SELECT customer_id FROM fresh; -- done; and over",
    "comments": "-- seq' reason\n/* ; \" /* type */ */ INSERT INTO seen (key) SELECT customer_id FROM fresh -- '",
    "literals": "INSERT INTO seen (key) SELECT customer_id FROM fresh WHERE '; seq -- '';' <> $x$ '; $x$",
    "percent": "INSERT INTO seen (key) SELECT customer_id FROM fresh WHERE customer_id LIKE 'a%' AND 7 % 4 = 3",
    "percent s": "INSERT INTO seen (key) SELECT customer_id FROM fresh WHERE 'x%s%(no)s' <> '%%'",
    "node": "INSERT INTO seen (key) SELECT customer_id FROM fresh WHERE %(node)s = 'own-1' AND %(consumer)s = 'own'",
    "with": "WITH a AS (SELECT customer_id FROM fresh) INSERT INTO seen (key) SELECT customer_id FROM a",
    "with that writes": "WITH a AS (UPDATE seen SET key = 'x' RETURNING 1), b (c) AS MATERIALIZED (SELECT customer_id"
    " FROM fresh) INSERT INTO seen (key) SELECT c FROM b RETURNING key;",
    "with, then select": "WITH a AS (INSERT INTO seen (key) SELECT customer_id FROM fresh RETURNING 1) SELECT * FROM a",
    "recursive": "WITH RECURSIVE n (i, name) AS (SELECT 1, customer_id FROM fresh UNION ALL SELECT i + 1, name FROM n"
    " WHERE i < 3) INSERT INTO seen (key) SELECT name FROM n WHERE i = 3",
    "merge": "MERGE INTO seen USING fresh ON seen.key = fresh.customer_id WHEN NOT MATCHED THEN"
    " INSERT (key) VALUES (customer_id)",
}


@pytest.mark.parametrize("name", FINE)
def test_a_statement_may_be_written_so(rig: Rig, pool: Pool, name: str) -> None:
    if name == "merge" and rig.connection.info.server_version < 170000:
        pytest.skip("MERGE in a WITH is new in PostgreSQL 17")
    inbox = handle(rig, pool, statement(FINE[name]), created(1, customer_id="alice"))
    assert rows(rig, "SELECT key FROM seen") == [("alice",)]
    assert inbox.tally.effects == 1


@pytest.mark.parametrize("name", ["event", "events", "taken", "again", "reused", "waiting", "repeats", "effect"])
def test_a_statement_may_use_its_own_tables_and_queries_of_any_name(rig: Rig, pool: Pool, name: str) -> None:
    rig.connection.execute(f"CREATE TABLE {name} AS SELECT 'own' AS word".encode())
    try:
        handle(rig, pool, statement(f"INSERT INTO seen (key) SELECT word FROM fresh, {name}"), created(1))
        with_one = (
            f"WITH {name} AS (SELECT 'a query' AS word FROM fresh) INSERT INTO seen (key) SELECT word FROM {name}"
        )
        handle(rig, pool, statement(with_one), created(2))
    finally:
        rig.connection.execute(f"DROP TABLE {name}".encode())
    assert rows(rig, "SELECT key FROM seen ORDER BY key") == [("a query",), ("own",)]


def test_update_and_delete(rig: Rig, pool: Pool) -> None:
    rig.connection.execute("INSERT INTO seen (outbox_id, key) VALUES (1, 'a'), (2, 'b')")
    handle(
        rig, pool, statement("UPDATE seen s SET key = f.type FROM fresh f WHERE f.outbox_id = s.outbox_id"), created(1)
    )
    handle(rig, pool, statement("DELETE FROM seen s USING fresh f WHERE f.outbox_id = s.outbox_id"), created(2))
    assert rows(rig, "SELECT outbox_id, key FROM seen") == [(1, "order.created")]


def test_an_effect_that_writes_nothing_is_counted_by_its_event(rig: Rig, pool: Pool) -> None:
    downstream = statement("INSERT INTO seen (key) SELECT key FROM fresh WHERE false")
    assert handle(rig, pool, downstream, created(1), created(2)).tally.effects == 2


@pytest.mark.parametrize(
    "sql", ["INSERT INTO seen (key) SELEC key FROM fresh", "INSERT INTO seen (key) SELECT 'x FROM fresh"]
)
def test_a_syntax_error_is_postgresqls_to_tell_and_nothing_is_written(rig: Rig, pool: Pool, sql: str) -> None:
    with pytest.raises(psycopg.errors.SyntaxError):
        handle(rig, pool, statement(sql), created(1), created(2))
    assert rows(rig, "SELECT FROM processed_events") == []


REFUSED = [
    "",
    "SELECT 1",
    "-- nothing",
    "CREATE TABLE x ()",
    "INSERT INTO a SELECT 1; DELETE FROM b",
    "WITH a AS (SELECT 1)",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_what_is_no_statement_over_fresh_is_refused(sql: str) -> None:
    with pytest.raises(UsageError, match="downstream own: sql must be one"):
        statement(sql)


@pytest.mark.parametrize("call", ["set_config('a.b', word, false)", "pg_advisory_lock(1)"])
def test_a_statement_that_would_leave_something_in_the_session_is_refused(call: str) -> None:
    with pytest.raises(UsageError, match=r"downstream own: sql is refused: .* would .* transaction"):
        statement(f"INSERT INTO a SELECT {call} FROM fresh")
