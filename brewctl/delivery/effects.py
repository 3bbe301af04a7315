"""How an effect is run, in each of its three forms: in one transaction with the dedup rows, or not at all.

sql      one statement, one round trip: dedup rows, then the downstream's statement over `fresh`
batch    BEGIN, dedup rows, one call with the fresh events, COMMIT
handler  BEGIN, dedup rows, a call for each fresh event, COMMIT
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any, LiteralString, Protocol

from google.protobuf.descriptor import FieldDescriptor

from brewctl.delivery import events
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import Event
from brewctl.delivery.transaction import lent
from brewctl.sql import queries

_Column = tuple[str, Callable[[Event[Any]], Any]]  # its type in PostgreSQL, and what an event has there
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_TIMESTAMP = "google.protobuf.Timestamp"
_TYPES = {
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_UINT32: "bigint",
    FieldDescriptor.CPPTYPE_INT64: "bigint",
    FieldDescriptor.CPPTYPE_UINT64: "numeric",
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_DOUBLE: "double precision",
    FieldDescriptor.CPPTYPE_FLOAT: "double precision",
    FieldDescriptor.CPPTYPE_ENUM: "text",
}
_OF_EACH: dict[str, _Column] = {
    "key": ("text", lambda event: event.key),
    "type": ("text", lambda event: event.type),
    "seq": ("bigint", lambda event: event.seq),
    "tenant_id": ("text", lambda event: event.tenant_id),
}


class Effect(Protocol):
    """The effect of a downstream."""

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        """Commit dedup rows and effects of events, no two of one outbox id; return how many were fresh.

        `repeats`: how often else an event is in the batch, by its outbox id. `looked`: none of their keys has parked
        events; else, where the consumer has some, KeysParkedError is raised. Raises what psycopg and a handler raise:
        then nothing was written, unless the connection was lost at the commit.
        """


def effect_of(downstream: Downstream, *, node: str) -> Effect:
    """Return the effect of a downstream, as this node has it."""
    return _Statement(downstream, node) if downstream.sql is not None else _Calls(downstream, node)


class KeysParkedError(Exception):
    """The consumer has parked events. Nothing was written: the keys must be looked at first."""


class _Statement:
    """The SQL form."""

    def __init__(self, downstream: Downstream, node: str) -> None:
        assert downstream.sql is not None
        self._consumer, self._node = downstream.group, node
        words = set(_WORD.findall(downstream.sql.lower()))
        self._columns = {name: column for name, column in _columns(downstream).items() if name in words}
        taking = _taking({name: kind for name, (kind, _) in self._columns.items()})
        self._text = f"{taking}, effect AS (\n{downstream.sql}\n)\n{queries['taken']}"

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        parameters = _parameters(self._consumer, self._node, part, repeats, looked=looked)
        for name, (_, of) in self._columns.items():
            parameters[f"column_{name}"] = [of(event) for event in part]
        fresh, there = connection.execute(self._text, parameters).fetchone() or (0, False)
        if there:
            raise KeysParkedError
        return int(fresh)


class _Calls:
    """The forms that call a handler."""

    def __init__(self, downstream: Downstream, node: str) -> None:
        self._consumer, self._node = downstream.group, node
        self._handler, self._batch = downstream.handler, downstream.batch
        self._take = f"{_taking({})}\n{queries['taken_ids']}"

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        asked = _parameters(self._consumer, self._node, part, repeats, looked=looked)
        with connection.transaction():
            rows = connection.execute(self._take, asked).fetchall()
            if rows[0][0]:
                raise KeysParkedError
            taken = {outbox_id for _, outbox_id in rows}
            fresh = [event for event in part if event.outbox_id in taken]
            if fresh and self._batch:
                with lent(connection) as tx:
                    self._batch(fresh, tx)
            elif self._handler:
                for event in fresh:
                    with lent(connection) as tx:
                        self._handler(event, tx)
        return len(fresh)


def _taking(columns: Mapping[str, str]) -> LiteralString:
    """Return the statement that takes events, with these columns of theirs and their types."""
    arrays = "".join(f", %(column_{name})b::{'text' if kind == 'uuid' else kind}[]" for name, kind in columns.items())
    arrays = "".join(
        f", %(column_{name})b::text[]::uuid[]" if kind == "uuid" else f", %(column_{name})b::{kind}[]"
        for name, kind in columns.items()
    )
    names = "".join(f', "{name}"' for name in columns)
    return queries["inbox"].replace("/* arrays */", arrays).replace("/* names */", names)


def _parameters(
    consumer: str, node: str, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool
) -> dict[str, Any]:
    return {
        "looked": looked,
        "consumer": consumer,
        "node": node,
        "outbox_ids": [event.outbox_id for event in part],
        "event_ids": [event.id for event in part],
        "repeated": [event.outbox_id for event in part for _ in range(repeats[event.outbox_id])] if repeats else [],
    }


def _columns(downstream: Downstream) -> dict[str, _Column]:
    """Return what `fresh` may have besides the ids, by name: of each event, and of its payload's fields."""
    found = {name: column for message in _messages(downstream) for name, column in _fields(message)}
    return {**found, **_OF_EACH}


def _messages(downstream: Downstream) -> Iterator[Any]:
    for name in downstream.events:
        message = events.MESSAGES.get(name)
        if decoder := downstream.decoders.get(name):
            message = getattr(decoder, "__self__", None)  # of Payment.FromString: Payment
        if hasattr(message, "DESCRIPTOR"):
            yield message


def _fields(message: Any) -> Iterator[tuple[str, _Column]]:
    for field in message.DESCRIPTOR.fields:
        if column := _field(field, own=message in events.MESSAGES.values()):
            yield field.name, column


def _field(field: Any, *, own: bool) -> _Column | None:
    name = field.name
    if field.is_repeated:
        return None
    if field.message_type is not None:
        if field.message_type.full_name != _TIMESTAMP:
            return None
        return (
            "timestamptz",
            lambda event: getattr(event.data, name).ToDatetime(tzinfo=UTC) if hasattr(event.data, name) else None,
        )
    if field.enum_type is not None:
        words = field.enum_type.values_by_number
        return (
            "text",
            lambda event: (
                words[number].name if (number := getattr(event.data, name, None)) in words else number and str(number)
            ),
        )
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "bytea", lambda event: getattr(event.data, name, None)
    kind = "uuid" if own and name == "order_id" else _TYPES[field.cpp_type]
    return kind, lambda event: getattr(event.data, name, None)
