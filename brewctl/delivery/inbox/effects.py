"""Runs a downstream's effect, in each of its three forms, in one transaction with the dedup rows.

sql      one statement, one round trip: dedup rows, then the downstream's statement over `fresh`
batch    BEGIN, dedup rows, one call with the fresh events, COMMIT
handler  BEGIN, dedup rows, a call for each fresh event, COMMIT

`inbox` runs it for batches, and `parking` for a redrive.
"""

import operator
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString, NamedTuple, Protocol

import psycopg
from google.protobuf.descriptor import FieldDescriptor

from brewctl.delivery import events, sql_text
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.database.lent_transaction import lent
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.events import Event
from brewctl.errors import UsageError
from brewctl.sql import queries

# A `%` that begins none of these parameters is the user's own, and is escaped.
_PERCENT = re.compile(r"%(?!\((?:node|consumer)\)s)")
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


class _Column(NamedTuple):
    """A column of `fresh`: its type in PostgreSQL, and how to get an event's value."""

    kind: str
    of: Callable[[Event[Any]], Any]


_OF_EACH: dict[str, _Column] = {
    "key": _Column("text", operator.attrgetter("key")),
    "type": _Column("text", operator.attrgetter("type")),
    "seq": _Column("bigint", operator.attrgetter("seq")),
    "tenant_id": _Column("text", operator.attrgetter("tenant_id")),
}
_LITERALS = frozenset({"uuid", "integer", "bigint", "numeric", "text"})
_IDS = frozenset({"outbox_id", "event_id"})


class Effect(Protocol):
    """The effect of a downstream, with its dedup rows."""

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        """Commit dedup rows and effects of events, no two with one outbox id. Return how many were fresh.

        `repeats`: further copies of each event in the batch, by outbox id. `looked`: the caller knows that their keys
        have no parked events; without it KeysParkedError is raised if the consumer has any. Raises what psycopg and a
        handler raise: then nothing was written, unless the connection was lost at the commit.
        """


def distinct(sequence: Iterable[Event[Any]]) -> Iterator[list[Event[Any]]]:
    """Split a sequence so that no part has an outbox id twice: after a restore two events may have the same."""
    part: dict[int, Event[Any]] = {}
    for event in sequence:
        if event.outbox_id in part:
            yield list(part.values())
            part = {}
        part[event.outbox_id] = event
    if part:
        yield list(part.values())


def effect_of(downstream: Downstream, *, node: str, beat: Callable[[], None] = lambda: None) -> Effect:
    """Return the effect of a downstream, for one node. `beat` is called before each call of a handler."""
    return _Statement(downstream, node) if downstream.sql is not None else _Calls(downstream, node, beat)


class KeysParkedError(Exception):
    """The consumer has parked events, and nothing was written: look up the keys first."""


class _Statement:
    """The SQL form."""

    def __init__(self, downstream: Downstream, node: str) -> None:
        assert downstream.sql is not None
        self._consumer, self._node = downstream.group, node
        effect = sql_text.effect(downstream.sql)
        self._columns = _columns(downstream, effect.words)
        take = taking({name: column.kind for name, column in self._columns.items()})
        if effect.recursive:
            take = take.replace("WITH ", "WITH RECURSIVE ", 1)
        # Its own WITH is appended to ours: PostgreSQL allows a writing query only in the outermost WITH.
        own = f"{_PERCENT.sub('%%', effect.queries)}, " if effect.queries else ""
        statement = _PERCENT.sub("%%", effect.statement)
        self._text = f"{take}, {own}brew_effect AS (\n{statement}\n)\n{queries['taken']}"

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        asked = parameters(self._consumer, self._node, part, repeats, looked=looked)
        for name, column in self._columns.items():
            asked[f"column_{name}"] = array(column.kind, list(map(column.of, part)))
        fresh, there = connection.execute(self._text, asked).fetchone() or (0, False)
        if there:
            raise KeysParkedError
        return int(fresh)


class _Calls:
    """The two forms that call a handler: with one event, and with a batch."""

    def __init__(self, downstream: Downstream, node: str, beat: Callable[[], None]) -> None:
        self._consumer, self._node, self._beat = downstream.group, node, beat
        self._handler, self._batch = downstream.handler, downstream.batch
        self._take = f"{taking({})}\n{queries['taken_ids']}"

    def __call__(
        self, connection: BoundedConnection, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool = False
    ) -> int:
        asked = parameters(self._consumer, self._node, part, repeats, looked=looked)
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
                    self._beat()  # the loop's bound is for one call
                    with lent(connection) as tx:
                        self._handler(event, tx)
        return len(fresh)


def taking(columns: Mapping[str, str]) -> LiteralString:
    """Return the statement that inserts dedup rows and yields `fresh`. `columns`: their names, and types."""
    arrays = "".join(
        f", %(column_{name}){'s' if kind in _LITERALS else 'b'}::{kind}[]" for name, kind in columns.items()
    )
    names = "".join(f', "{name}"' for name in columns)
    return queries["inbox"].replace("/* arrays */", arrays).replace("/* names */", names)


def parameters(
    consumer: str, node: str, part: Sequence[Event[Any]], repeats: Counter[int], *, looked: bool
) -> dict[str, Any]:
    """Return the parameters of that statement, without those of the columns."""
    return {
        "looked": looked,
        "consumer": consumer,
        "node": node,
        "outbox_ids": array("bigint", [event.outbox_id for event in part]),
        "event_ids": array("uuid", [event.id for event in part]),
        "repeated": [event.outbox_id for event in part for _ in range(repeats[event.outbox_id])] if repeats else [],
    }


def array(kind: str, values: list[Any]) -> Any:
    """Return an array parameter: PostgreSQL's own text for an array where no value needs escaping, else the list.

    psycopg adapts each element of a list separately, which took as long as the rest of this module together.
    """
    if kind not in _LITERALS:
        return values
    if kind == "text":
        try:
            text = '","'.join(values)
        except TypeError:  # a None
            return values
        plain = values and "\\" not in text and text.count('"') == 2 * (len(values) - 1)
        return f'{{"{text}"}}' if plain else values
    text = ",".join(map(str, values)).replace("None", "NULL")
    # A value with a comma would be read as two: psycopg quotes it, and PostgreSQL reports what is wrong with it.
    return f"{{{text}}}" if text.count(",") == len(values) - 1 else values


def _columns(downstream: Downstream, words: frozenset[str]) -> dict[str, _Column]:
    """Return the columns of `fresh`, besides the ids, that a statement names: the event's, and its payload's fields.

    A field with the name of an event's own column is called `data_` and its name. Raises UsageError where a field has
    one type in one message and another type in another.
    """
    found = {name: column for name, column in _OF_EACH.items() if name in words or "*" in words}
    readers: dict[str, dict[str, tuple[Any, str, Callable[[Any], Any] | None]]] = {}
    for event_type in downstream.events:
        message = _message(downstream, event_type)
        for field in message.DESCRIPTOR.fields if message is not None else ():
            name = f"data_{field.name}" if field.name in _OF_EACH or field.name in _IDS else field.name
            if (name.lower() in words or "*" in words) and (kind := _kind(message, field)):
                readers.setdefault(name, {})[event_type] = (field, kind, _reader(field))
    for name, of_type in readers.items():
        kinds = {kind for _, kind, _ in of_type.values()}
        if len(kinds) > 1:
            said = ", ".join(f"{kind} in {event_type}" for event_type, (_, kind, _) in of_type.items())
            raise UsageError(
                f"downstream {downstream.group}: `fresh` can't have the column {name}: {said}",
                hint="write it as a handler, or as two downstreams",
            )
        found[name] = _Column(kinds.pop(), _getter(of_type, of_all=len(of_type) == len(downstream.events)))
    return found


def _getter(
    readers: Mapping[str, tuple[Any, str, Callable[[Any], Any] | None]], *, of_all: bool
) -> Callable[[Event[Any]], Any]:
    names = {field.name for field, _, _ in readers.values()}
    if of_all and len(names) == 1 and all(reader is None for _, _, reader in readers.values()):
        return operator.attrgetter(f"data.{names.pop()}")  # the usual case, and by far the quickest
    by_type = {
        event_type: reader or operator.attrgetter(field.name) for event_type, (field, _, reader) in readers.items()
    }
    return lambda event: reader(event.data) if (reader := by_type.get(event.type)) else None


def _message(downstream: Downstream, event_type: str) -> Any:
    """Return the message class that an event type is decoded to: of Payment.FromString, or by a return annotation."""
    own = events.MESSAGES.get(event_type)
    decoder = downstream.decoders.get(event_type)
    message = getattr(decoder, "__self__", None) if decoder else own
    if message is None:
        try:
            message = typing.get_type_hints(decoder).get("return", own)
        except (TypeError, NameError):
            message = own
    return message if hasattr(message, "DESCRIPTOR") else None


def _kind(message: Any, field: Any) -> str:
    """Return a field's type in PostgreSQL; empty where it can't be a column."""
    if field.is_repeated:
        return ""
    if field.message_type is not None:
        return "timestamptz" if field.message_type.full_name == _TIMESTAMP else ""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "bytea"
    own: Iterable[Any] = events.MESSAGES.values()
    return "uuid" if field.name == "order_id" and message in own else _TYPES[field.cpp_type]


def _reader(field: Any) -> Callable[[Any], Any] | None:
    """Return how to read a field from a message; None where its attribute is the value."""
    name = field.name
    if field.message_type is not None:
        return lambda data: _time(name, getattr(data, name)) if data.HasField(name) else None
    if field.enum_type is not None:
        words = {number: value.name for number, value in field.enum_type.values_by_number.items()}

        def read(data: Any) -> Any:
            number = getattr(data, name)
            return words.get(number, str(number))

        return (lambda data: read(data) if data.HasField(name) else None) if field.has_presence else read
    if field.has_presence:
        return lambda data: getattr(data, name) if data.HasField(name) else None
    return None


def _time(name: str, value: Any) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)  # type: ignore[no-any-return]
    except (ValueError, OverflowError) as error:
        # The error that PostgreSQL would raise for this row: it blames this event alone.
        raise psycopg.DataError(f"{name} is no time: {' '.join(str(error).split())[:200]}") from None
