"""Counting for the dashboard: exact where that is cheap, an estimate that says so where it is not."""

import pytest

from brewctl.lab.top import counting
from brewctl.lab.top.counting import Counting
from brewctl.roles import inventory, notifications
from tests.conftest import Rig

STORY = (inventory.DOWNSTREAM, notifications.DOWNSTREAM)

ADD = """
WITH added AS (INSERT INTO orders SELECT gen_random_uuid(), 'brew', 'c', 1, 'EUR', 'NEW' FROM generate_series(1, 100)
               RETURNING id),
     event AS (INSERT INTO outbox (aggregate_id, topic, payload) SELECT 'order-' || id, 't', '' FROM added)
INSERT INTO inventory_reservations SELECT id, 'n' FROM added
"""


def add(rig: Rig) -> None:
    """Add 100 orders, and tell the statistics at once: a session does so once a second at most."""
    rig.connection.execute(ADD)
    rig.connection.execute("SELECT pg_stat_force_next_flush()")


def test_between_exact_counts_stands_what_was_added_since(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = rig.connection
    counters = Counting(STORY)
    add(rig)
    assert counters.look(connection).orders == 100
    monkeypatch.setattr(counting, "_SHARE", 1e9)  # as if the tables were so large
    counters = Counting(STORY)
    first = counters.look(connection)
    assert (first.orders, first.unpublished, first.published, first.estimated) == (100, 100, 0, frozenset())
    add(rig)
    connection.execute("UPDATE outbox SET published_at = now() WHERE id <= 150")
    connection.execute("UPDATE outbox SET failed_at = now() WHERE id > 190")
    after = counters.look(connection)
    assert (after.orders, after.effects) == (200, {"reservations": 200, "notifications": 0})
    assert after.estimated == {"orders", "published", "reservations", "notifications"}
    assert (after.unpublished, after.published, after.set_aside) == (50, 150, 10)
    assert after.oldest_s is not None

    connection.execute("TRUNCATE orders, outbox, inventory_reservations")
    emptied = counters.look(connection)
    assert (emptied.orders, emptied.published, emptied.oldest_s) == (0, 0, None)
    assert emptied.effects["reservations"] == 0
    assert not emptied.estimated & {"orders", "published", "reservations"}


def test_more_unpublished_rows_than_are_counted_each_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_MOST_UNPUBLISHED", 60)
    add(rig)
    seen = Counting(STORY).look(rig.connection)
    assert seen.unpublished == 60
    assert seen.estimated == {"orders", "published"}
