"""The lines that people and tests read."""

import uuid

import pytest

from brewctl.overview import Counts, Unfinished, distribution_line


def test_the_counters_line() -> None:
    counts = Counts(orders=200, outbox_unpublished=0, reservations=163, notifications=200)
    assert str(counts) == "counts: orders=200 outbox_unpublished=0 reservations=163 notifications=200"


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ({"inventory-1": 87, "inventory-2": 113}, "inventory distribution: {inventory-1: 87, inventory-2: 113}"),
        ({"inventory-1": 1}, "inventory distribution: {inventory-1: 1}"),
        ({}, "inventory distribution: {}"),
    ],
)
def test_the_distribution_line(shares: dict[str, int], line: str) -> None:
    assert distribution_line(shares) == line


def test_an_unfinished_order_says_what_is_missing() -> None:
    order_id = uuid.UUID("7f3c1de6-3f0c-4d62-9a8d-0f4c8f7f3a11")
    told = str(Unfinished(order_id, events=1, published=0, reserved=True, notified=False))
    assert told == f"order {order_id}: events=1 published=0 reserved=yes notified=no"
