"""The contract of a record, written out once more for `verify`: it agrees with the program, and knows what is none."""

import uuid
from dataclasses import replace

import pytest

from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.proto.orders_pb2 import OrderCreated
from brewctl.verify import contract
from brewctl.verify.contract import Reading, Row

ORDER_ID = "01a219ea-d59f-712c-af54-90bcdb05a46e"
ORDER = OrderCreated(order_id=ORDER_ID, tenant_id="tea", trace_id="0af7651916cd43dd8448eb211c80319c")
KEY = f"order-{ORDER_ID}"
HEADERS = events.order_headers(7, ORDER, node="order-1")
ROW = Row(7, KEY, "topic", ORDER.SerializeToString(), "order-1", 3, 40)
RECORD = Record("topic", KEY.encode(), ROW.payload, HEADERS, 3, 40)


def changed(**new: bytes | None) -> list[tuple[str, bytes]]:
    said = {name.replace("_", "-"): value for name, value in new.items()}
    pairs = [(name, said.get(name, value)) for name, value in HEADERS]
    return [(name, value) for name, value in pairs if value is not None]


def test_what_the_publisher_sends_is_the_contract() -> None:
    assert contract.headers_differ(RECORD, ROW, ORDER, "tea") == ""
    assert contract.read(RECORD.value, RECORD.headers) == Reading(7, ORDER)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (HEADERS[::-1], "its headers are content-type, event-type, tenant-id"),
        (HEADERS[:-1], "its headers are outbox-id, "),
        (changed(outbox_id=b"07"), "outbox-id is 07, not 7"),
        (changed(aggregate_id=ORDER_ID.encode()), f"aggregate-id is {ORDER_ID}, not {KEY}"),
        (changed(publisher_node=b"order-2"), "publisher-node is order-2, not order-1"),
        (changed(publisher_node=b"an order"), "publisher-node is an order, no node's name"),
        (changed(trace_id=b"0" * 32), f"trace-id is {'0' * 32}, not {ORDER.trace_id}"),
        (changed(tenant_id=b"coffee"), "tenant-id is coffee, not tea"),
        (changed(event_type=b"order.paid"), "event-type is order.paid, not order.created"),
        (changed(content_type=b"text/plain"), "content-type is text/plain, not application/x-protobuf"),
    ],
)
def test_what_is_not_the_contract_is_named(headers: list[tuple[str, bytes]], says: str) -> None:
    assert contract.headers_differ(replace(RECORD, headers=headers), ROW, ORDER, "tea").startswith(says)


def test_a_copy_elsewhere_may_be_another_nodes() -> None:
    copy = replace(RECORD, offset=41, headers=changed(publisher_node=b"order-2"))
    assert contract.headers_differ(copy, ROW, ORDER, "tea") == ""


def test_the_tenant_is_the_orders_own_not_the_payloads() -> None:
    assert contract.headers_differ(RECORD, ROW, ORDER, "coffee") == "tenant-id is tea, not coffee"
    assert contract.headers_differ(RECORD, ROW, ORDER, None) == ""


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (ROW.payload, []),
        (ROW.payload, changed(event_type=b"\xff")),
        (ROW.payload, changed(content_type=None)),
        (ROW.payload, changed(content_type=b"text/plain")),
        (ROW.payload, changed(outbox_id=None)),
        (ROW.payload, changed(outbox_id=b"0")),
        (ROW.payload, changed(outbox_id=b"-1")),
        (ROW.payload, changed(outbox_id="\u0667".encode())),
        (ROW.payload, changed(outbox_id=b"9223372036854775808")),
        (None, HEADERS),
        (b"", HEADERS),
        (b"\xff rubbish", HEADERS),
        (OrderCreated(order_id="no uuid").SerializeToString(), HEADERS),
    ],
)
def test_what_is_unreadable_is_so_to_the_consumers_too(value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
    assert contract.read(value, headers) == Reading(unreadable=True)
    with pytest.raises(events.UnreadableError):
        events.read(b"key", value, headers, decoders={b"order.created": events.parse_order})


def test_another_type_is_nobodys_fault() -> None:
    assert contract.read(b"whatever", [("event-type", b"stock.counted")]) == Reading()


@pytest.mark.parametrize(
    ("aggregate", "order_id"),
    [(KEY, ORDER_ID), (KEY.upper().replace("ORDER", "order"), ORDER_ID), (ORDER_ID, None), ("order-1", None)],
)
def test_the_order_of_an_aggregate(aggregate: str, order_id: str | None) -> None:
    assert contract.order_of(aggregate) == order_id
    assert order_id is None or uuid.UUID(order_id)
