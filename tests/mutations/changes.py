"""Small changes of the program, each of which breaks one promise. Only processes that a test starts ever have one.

A change is applied before the program runs: a function of its is replaced, or a query is rewritten. One that finds
nothing to change fails, so that no mutation passes because the program was written anew meanwhile.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from brewctl.delivery import events
from brewctl.delivery.broker import Place, Producer, Record
from brewctl.delivery.broker.kafka_python import producer as kafka_python_producer
from brewctl.delivery.broker.partitions import partition_for
from brewctl.delivery.downstream import Reject
from brewctl.delivery.inbox import dead_letter, effects, inbox, parking
from brewctl.delivery.outbox import publisher
from brewctl.delivery.outbox import records as record_making
from brewctl.sql import queries

Change = Callable[[], None]


def rewrite(name: str, pattern: str, new: str) -> None:
    """Rewrite a part of a query of queries.sql. Raises LookupError where there is no such part."""
    text, count = re.subn(pattern, new, queries[name], flags=re.DOTALL)
    if not count:
        raise LookupError(f"query {name} has nothing like {pattern}")
    queries[name] = text


def _put(owner: object, name: str, new: object) -> None:
    """Replace a part of the program. Raises AttributeError where there is no such part."""
    getattr(owner, name)
    setattr(owner, name, new)


def in_group(group: str, change: Change) -> Change:
    """Apply a change in the processes of one consumer group alone."""
    return lambda: change() if group in sys.argv else None


# Order-service


def events_twice() -> None:
    """Each order gets two outbox rows."""
    rewrite("create_orders", r"FROM new_order JOIN written USING \(id\)", r"\g<0>, generate_series(1, 2)")


def event_without_order() -> None:
    """Beside each order's event there is one of an order that was never made."""
    rewrite(
        "create_orders",
        r"SELECT 'order-' \|\| id, (.*?) FROM new_order JOIN written USING \(id\)",
        r"\g<0> UNION ALL SELECT 'order-' || gen_random_uuid(), \1 FROM new_order JOIN written USING (id)",
    )


def misnumbered() -> None:
    """Each order's first event has the number 2."""
    rewrite("create_orders", r"%\(event_type\)s, 1,", "%(event_type)s, 2,")


def another_amount() -> None:
    """The order's row has another amount than its event."""
    rewrite("create_orders", r"(SELECT id, tenant_id, customer_id, amount_cents)(, currency)", r"\1 + 1\2")


def acknowledged_unwritten() -> None:
    """The client is told of an order that was never written."""
    rewrite("create_orders", r"(INSERT INTO orders.*?FROM new_order)", r"\1 WHERE false")
    rewrite("create_orders", r"SELECT id FROM written\s*$", "SELECT id FROM new_order")


def cancel_unwritten() -> None:
    """The client is told of a cancel that was never written."""
    rewrite("cancel_order", r"WHERE id = %\(id\)s", r"\g<0> AND false")


# The publisher


def publisher_waits() -> None:
    """Nothing is published before every order has its order.cancelled."""
    run = publisher.Publisher.run
    both = "SELECT count(*) > 0 AND count(*) = 2 * count(*) FILTER (WHERE aggregate_seq = 1) FROM outbox"

    def later(publisher: Any, stop: Any) -> None:
        with publisher._pool.connection() as connection:
            while connection.execute(both).fetchone() == (False,) and not stop.wait(0.1):
                pass
        run(publisher, stop)

    _put(publisher.Publisher, "run", later)


def publisher_sleeps() -> None:
    """No row is ever published."""

    def run(_publisher: object, stop: Any) -> None:
        stop.wait()

    _put(publisher.Publisher, "run", run)


def _sending(change: Callable[[Any, Sequence[Record], Callable[..., Any]], Any]) -> None:
    send = Producer.send

    def changed(producer: Any, records: Sequence[Record], *, timeout_s: float) -> Any:
        if any(record.topic.endswith(".dlq") for record in records):
            return send(producer, records, timeout_s=timeout_s)
        return change(producer, records, lambda some: send(producer, some, timeout_s=timeout_s))

    _put(Producer, "send", changed)


def marked_unsent() -> None:
    """Rows are marked as published, and were never sent."""
    _sending(lambda _producer, records, _send: [Place(0, at) for at, _ in enumerate(records)])


def sent_backwards() -> None:
    """A batch is sent with its last row first."""
    _sending(lambda _producer, records, send: send(records[::-1])[::-1])


def sent_uncommitted() -> None:
    """Records are sent of rows that are rolled back."""

    def stranger(record: Record) -> Record:
        headers = [(name, b"9" + value if name == "outbox-id" else value) for name, value in record.headers]
        return record._replace(headers=headers)

    _sending(lambda _producer, records, send: send([*records, *map(stranger, records)])[: len(records)])


def sent_elsewhere_too() -> None:
    """Each record is sent a second time, into the next partition."""
    further = [0]
    _put(
        kafka_python_producer,
        "partition_for",
        lambda key, partitions: (partition_for(key, partitions) + further[0]) % partitions,
    )

    def twice(_producer: Any, records: Sequence[Record], send: Callable[..., Any]) -> Any:
        outcomes = send(records)
        further[0] = 1
        send(records)
        further[0] = 0
        return outcomes

    _sending(twice)


def _records(change: Callable[[Record], Record]) -> None:
    _put(record_making, "Record", lambda *parts, **named: change(Record(*parts, **named)))


def another_key() -> None:
    """The record's key is the order's bare id."""
    _records(lambda record: record._replace(key=(record.key or b"").removeprefix(b"order-")))


def another_payload() -> None:
    """The record's value is not, byte for byte, the row's payload."""
    _records(lambda record: record._replace(value=(record.value or b"") + b"\xfa\x01\x00"))


def _headers(change: Callable[[events.Headers], events.Headers]) -> Change:
    def apply() -> None:
        right = events.headers_for
        events.headers_for = lambda *parts, **named: change(right(*parts, **named))

    return apply


# Every reader and writer of the program has these wrong headers: verify must not take them from there.
another_tenant = _headers(lambda pairs: [(name, b"coffee" if name == "tenant-id" else value) for name, value in pairs])
headers_swapped = _headers(lambda pairs: [pairs[1], pairs[0], *pairs[2:]])
trace_forgotten = _headers(lambda pairs: [(name, b"0" * 32 if name == "trace-id" else value) for name, value in pairs])
another_event = _headers(
    lambda pairs: [(name, b"0" * 8 + value[8:] if name == "event-id" else value) for name, value in pairs]
)
another_node = _headers(
    lambda pairs: [(name, b"order-9" if name == "publisher-node" else value) for name, value in pairs]
)


# Consumers


def deduplication_off() -> None:
    """Every delivery of an event has its effect."""
    rewrite("inbox", r"fresh AS \(.*$", "fresh AS (SELECT * FROM brew_event)")


def no_dedup_row() -> None:
    """An effect is written, and what was done is forgotten."""
    rewrite("inbox", r"brew_taken AS \(.*$", "fresh AS (SELECT * FROM brew_event)")


def taken_backwards() -> None:
    """What is newer counts as processed earlier."""
    rewrite(
        "inbox",
        r"(processed_events \(consumer, outbox_id, event_id)(\)\s+SELECT %\(consumer\)s, outbox_id, event_id)",
        r"\1, processed_at\2, now() - outbox_id * interval '1 minute'",
    )


def _effect(group: str) -> str:
    return {"inventory": "reserve", "notifications": "notify"}[group]


def effect_forgotten(group: str) -> Change:
    """Remember an event as done whose effect is not written, as two transactions and a crash between them would."""
    return in_group(group, lambda: rewrite(_effect(group), r"FROM fresh", "FROM fresh WHERE false"))


def effect_invented(group: str) -> Change:
    """Write each effect once more, of an order that nobody made."""
    more = "SELECT order_id, seq, type FROM fresh UNION ALL SELECT gen_random_uuid(), seq, type FROM fresh"
    return in_group(group, lambda: rewrite(_effect(group), r"FROM fresh", f"FROM ({more}) AS fresh"))


def cancel_forgotten(group: str) -> Change:
    """Take an order.cancelled, and leave the effect as it was."""
    return in_group(group, lambda: rewrite(_effect(group), r"bool_or\(type = 'order.cancelled'\)", "false"))


def cancel_invented(group: str) -> Change:
    """Let each effect be that of a cancelled order."""
    return in_group(group, lambda: rewrite(_effect(group), r"bool_or\(type = 'order.cancelled'\)", "true"))


def consumer_stuck(group: str) -> Change:
    """Never get a batch into the database."""

    def apply(_inbox: object, _batch: object) -> None:
        raise psycopg.OperationalError("says the mutation")

    return in_group(group, lambda: _put(inbox.Inbox, "apply", apply))


def batch_dropped(group: str) -> Change:
    """Commit the offsets of batches that were never written."""
    return in_group(group, lambda: _put(inbox.Inbox, "_commit_part", lambda _inbox, part, *_: (len(part), 0)))


def parked_overtaken(group: str) -> Change:
    """Park the first order's event, and give later events of its key their effect all the same."""

    def change() -> None:
        right = effects._Statement.__call__
        poor: list[int] = []

        def call(effect: Any, connection: Any, part: Any, repeats: Any, *, looked: bool = False) -> int:
            poor.extend(event.outbox_id for event in part[:1] if not poor)
            if any(event.outbox_id == poor[0] for event in part):
                raise Reject("says the mutation")
            return right(effect, connection, part, repeats, looked=looked)

        _put(effects._Statement, "__call__", call)
        _put(parking.Parking, "park_behind", lambda _parking, _connection, part: ([event for _, event in part], 0))

    return in_group(group, change)


def letter_forgotten(group: str) -> Change:
    """Pass over what can't be read, without a dead letter."""
    return in_group(group, lambda: _put(inbox.Inbox, "_bury", lambda _inbox, batch: batch.dead.clear()))


def letter_altered(group: str) -> Change:
    """Write dead letters that are not the records that died."""
    letter_for = dead_letter.letter_for

    def altered(*parts: Any, **named: Any) -> Record:
        return letter_for(*parts, **named)._replace(value=b"another")

    return in_group(group, lambda: _put(dead_letter, "letter_for", altered))


_OF_A_GROUP = (
    effect_forgotten,
    effect_invented,
    cancel_forgotten,
    cancel_invented,
    consumer_stuck,
    batch_dropped,
    parked_overtaken,
    letter_forgotten,
    letter_altered,
)
_IN_A_GROUP = (deduplication_off, no_dedup_row, taken_backwards)
GROUPS = ("inventory", "notifications")
CHANGES: dict[str, Change] = {
    "events_twice": events_twice,
    "event_without_order": event_without_order,
    "misnumbered": misnumbered,
    "another_amount": another_amount,
    "acknowledged_unwritten": acknowledged_unwritten,
    "cancel_unwritten": cancel_unwritten,
    "publisher_waits": publisher_waits,
    "publisher_sleeps": publisher_sleeps,
    "marked_unsent": marked_unsent,
    "sent_backwards": sent_backwards,
    "sent_uncommitted": sent_uncommitted,
    "sent_elsewhere_too": sent_elsewhere_too,
    "another_key": another_key,
    "another_payload": another_payload,
    "another_tenant": another_tenant,
    "headers_swapped": headers_swapped,
    "trace_forgotten": trace_forgotten,
    "another_event": another_event,
    "another_node": another_node,
    **{f"{make.__name__}:{group}": make(group) for make in _OF_A_GROUP for group in GROUPS},
    **{f"{change.__name__}:{group}": in_group(group, change) for change in _IN_A_GROUP for group in GROUPS},
}
