"""Arrays that are written by hand, as PostgreSQL reads them."""

import pytest

from brewctl.delivery.database import arrays
from brewctl.delivery.orders import acceptance, store
from brewctl.proto.orders_pb2 import CreateRequest
from tests.conftest import Rig

TEXTS = (
    "plain",
    "",
    "NULL",
    "null",
    " a b ",
    "a,b",
    "{a}",
    '"',
    "\\",
    '\\"',
    "a\\\\x",
    "it's",
    "%s %(ids)s",
    "ü€😀",
    "$1",
)


@pytest.mark.parametrize("count", [0, 1, len(TEXTS)])
def test_what_goes_in_comes_out(rig: Rig, count: int) -> None:
    texts: list[str | None] = [*TEXTS[:count], None]
    numbers, blobs = [0, -1, 2**63 - 1, -(2**63)][:count], [b"", b"\x00\\x\"'{},", bytes(range(256))][:count]
    given = (arrays.of_texts(texts), arrays.of_numbers(numbers), arrays.of_bytes(blobs))
    row = rig.connection.execute("SELECT %s::text[], %s::bigint[], %s::bytea[]", given).fetchone()
    assert row == (texts, numbers, blobs)


def test_orders_are_written_as_they_were_accepted(rig: Rig) -> None:
    made = [
        acceptance.accept(
            CreateRequest(customer_id=text or "x", amount_cents=number, currency="EUR", idempotency_key=text),
            tenant_id=None,
            traceparent=None,
        )
        for number, text in enumerate(TEXTS, 1)
    ]
    assert store.write(rig.connection, made, topic=rig.settings.topic) == {each.id for each in made}
    written = rig.connection.execute(
        "SELECT o.id, customer_id, amount_cents, o.tenant_id, idempotency_key, o.created_at, payload, trace_id,"
        " traceparent FROM orders o JOIN outbox x ON x.aggregate_id = 'order-' || o.id"
    ).fetchall()
    expected = [
        (
            *(each.id, each.order.customer_id, each.order.amount_cents, each.tenant_id, each.idempotency_key),
            *(each.created_at, each.event(), each.trace_id, each.traceparent),
        )
        for each in made
    ]
    assert sorted(written, key=str) == sorted(expected, key=str)
