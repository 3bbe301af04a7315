"""add_event: writes an event of any service to the outbox, in the transaction of the change that it reports."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg
from google.protobuf.message import Message
from psycopg.rows import tuple_row

from brewctl import tracing
from brewctl.errors import BrewError
from brewctl.sql import queries


def add_event(
    connection: psycopg.Connection[Any],
    *,
    aggregate_id: str,
    event_type: str,
    payload: bytes | Message,
    topic: str | None = None,
    tenant_id: str | None = None,
    trace_id: str | None = None,
    traceparent: str | None = None,
    event_id: UUID | str | None = None,
    content_type: str | None = None,
) -> int:
    """Add an event to the outbox in the connection's transaction, and return its outbox id.

    It is published after that transaction is committed, and never where it is rolled back; on an autocommit connection
    outside a transaction it is committed at once. The aggregate stays locked to the end of the transaction: add events
    of several aggregates in the same order everywhere, or two transactions may deadlock.

    Defaults: `topic` the story's; `trace_id` that of the traceparent, else a new one; `content_type` Protobuf. Where
    traces are made and neither `trace_id` nor `traceparent` is given, the current span's are used, such as a handler's.
    Raises TypeError for a payload that is text, BrewError where the database has no outbox_add(), and psycopg's errors:
    InvalidParameterValue names the invalid argument.
    """
    if not isinstance(connection, psycopg.Connection):
        raise TypeError(f"add_event takes a psycopg.Connection, not {type(connection).__name__}")
    if traceparent is None and trace_id is None:
        traceparent = tracing.current_traceparent()
    asked: Mapping[str, object] = {
        "topic": topic,
        "aggregate_id": aggregate_id,
        "event_type": event_type,
        "payload": _bytes(payload),
        "tenant_id": tenant_id,
        "trace_id": trace_id,
        "traceparent": traceparent,
        "event_id": event_id,
        "content_type": content_type,
    }
    try:
        with connection.cursor(row_factory=tuple_row) as cursor:
            (outbox_id,) = cursor.execute(queries["add_event"], asked).fetchone() or (0,)
    except psycopg.errors.UndefinedFunction as error:
        hint = "run `brewctl db init`, or put the schema of its tables into the search_path"
        raise BrewError("postgres has no function outbox_add() that this session can find", hint=hint) from error
    return int(outbox_id)


def _bytes(payload: object) -> bytes:
    if isinstance(payload, Message):
        return payload.SerializeToString()
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    raise TypeError(f"payload must be bytes or a protobuf message, not {type(payload).__name__}")
