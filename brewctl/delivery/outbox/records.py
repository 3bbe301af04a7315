"""Turns outbox rows into Kafka records."""

from collections.abc import Sequence

from psycopg.rows import TupleRow

from brewctl.delivery import events
from brewctl.delivery.broker import Record


def records_of(rows: Sequence[TupleRow], *, node: str) -> tuple[dict[int, Record], dict[int, str]]:
    """Return the records of rows, and the reasons why other rows can never become one, by outbox id.

    `rows`: of the query fetch_unpublished. Rows behind a refused row of their aggregate are in neither.
    """
    records: dict[int, Record] = {}
    refused: dict[int, str] = {}
    stopped = set()  # the aggregates of refused rows
    for row_id, key, topic, payload, event_type, tenant, trace, event_id, seq, parent, content, now_ms, *_ in rows:
        if key in stopped:
            continue
        if event_type is None:
            try:
                event_type, tenant, trace = _of_the_version_before(payload)  # noqa: PLW2901
            except events.UnreadableError as error:
                refused[row_id] = str(error)
                stopped.add(key)
                continue
        headers = events.headers_for(
            row_id,
            key,
            event_type,
            node=node,
            tenant_id=tenant,
            trace_id=trace,
            event_id=event_id,
            seq=seq,
            traceparent=parent,
            content_type=content,
        )
        records[row_id] = Record(topic, key.encode(), payload, headers, timestamp_ms=now_ms)
    return records, refused


def _of_the_version_before(payload: bytes) -> tuple[str, str, str]:
    """Return type, tenant and trace of an older version's row, whose columns are empty: it is an OrderCreated.

    Raises UnreadableError.
    """
    order = events.parse_order(payload)
    return events.ORDER_CREATED, order.tenant_id, order.trace_id
