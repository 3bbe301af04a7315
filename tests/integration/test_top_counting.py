"""Counting for the dashboard: exact where that is cheap, an estimate that says so where it is not."""

import uuid
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from brewctl.delivery.downstream import Downstream
from brewctl.lab.top import counting
from brewctl.lab.top.counting import Counting
from brewctl.lab.top.observer import Observer
from brewctl.lifecycle import wait_until
from brewctl.roles import inventory, notifications
from brewctl.security import Secret
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


def test_the_effects_of_any_downstream(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its query, else by what it has processed. One whose table is missing hides no other's number."""

    def made(group: str, done: str = "") -> Downstream:
        return Downstream(group, handler=lambda _event, _tx: None, events=("order.created",), done=done)

    counted, plain = made("counted", 'SELECT id FROM "Its points"'), made("plain")
    joined = made("joined", 'SELECT o.id FROM orders o JOIN "Its points" USING (id)')
    monkeypatch.setattr(counting, "_SHARE", 1e9)
    counters = Counting((counted, plain, joined))
    assert counters.look(rig.connection).effects == {"counted": None, "plain": 0, "joined": None}
    rig.connection.execute('CREATE TABLE "Its points" (id uuid)')
    rig.connection.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('plain', 1), ('other', 2)")
    counters = Counting((counted, plain, joined))
    seen = counters.look(rig.connection)
    assert seen.effects == {"counted": 0, "plain": 1, "joined": 0}
    assert not seen.estimated
    rig.connection.execute('INSERT INTO "Its points" SELECT uuidv7() FROM generate_series(1, 7)')
    rig.connection.execute("SELECT pg_stat_force_next_flush()")
    later = counters.look(rig.connection)
    # The statistics are of its one table; of two, or of all groups' dedup rows, they say nothing: the last count stays.
    assert later.effects == {"counted": 7, "plain": 1, "joined": 0}
    assert later.estimated >= {"counted", "plain", "joined"}


def test_one_with_a_database_of_its_own_is_counted_there(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apart.py").write_text(
        "from brewctl import downstream\n"
        "@downstream('apart', events=['order.created'], done='SELECT order_id FROM only_there')\n"
        "def apart(event, tx): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    name = f"brew_test_own_{uuid.uuid4().hex[:12]}"
    url = psycopg.conninfo.make_conninfo(rig.settings.database_url, dbname=name)
    its = (Secret("BREW_APART_DATABASE_URL", url),)
    settings = replace(rig.settings, downstreams=(*rig.settings.downstreams, "apart:apart"), own_databases=its)

    def effects() -> dict[str, int | None]:
        counters = observer.look().counters
        return dict(counters.effects) if counters else {}

    with Observer(settings, None).looking() as observer:
        # Away: the others are counted all the same.
        wait_until(
            "the story", lambda: effects() == {"reservations": 0, "notifications": 0, "apart": None}, timeout_s=60
        )
        rig.connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            with psycopg.connect(url, autocommit=True) as own:
                own.execute("CREATE TABLE only_there AS SELECT uuidv7() AS order_id FROM generate_series(1, 3)")
            wait_until("its own", lambda: effects()["apart"] == 3, timeout_s=60)
            assert observer.look().downstreams == ("reservations", "notifications", "apart")
            assert "postgres" not in observer.look().troubles
        finally:
            rig.connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
        wait_until("its end", lambda: effects()["apart"] is None, timeout_s=60)
