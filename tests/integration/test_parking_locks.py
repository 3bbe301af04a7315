"""The lock of a key keeps those apart who park its events, redrive them and drop them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from brewctl.delivery import database, events
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.inbox import Inbox
from tests.conftest import Rig
from tests.integration.test_parking import Applied, applied, event, ids, parked


@dataclass
class Parked:
    """A key with one parked event, its next event, and the inbox that has parked it."""

    app: Applied
    inbox: Inbox
    key: str
    following: Any
    record: Any


@pytest.fixture
def story(rig: Rig, pool: Pool) -> Parked:
    (bad,) = ids(1)
    app = Applied(rig, attempts=1)
    app.failing[bad] = ValueError("not yet")
    inbox = Inbox(rig.settings, pool, app.downstream, node="n")
    inbox.handle([event(1, bad)])
    app.failing.clear()
    record = event(2, bad, seq=2)
    ((_, read),) = inbox.read([record]).readable.values()
    return Parked(app, inbox, events.aggregate_id(bad), read, record)


def park(connection: Any, story: Parked) -> object:
    return parking.Parking("applied").park(connection, (story.record, story.following), "why", attempts=1)


def park_behind(connection: Any, story: Parked) -> object:
    return parking.Parking("applied").park_behind(connection, [(story.record, story.following)])


def redrive(connection: Any, story: Parked) -> object:
    return parking.redrive(connection, story.app.downstream, [story.key], node="n")


def drop(connection: Any, _story: Parked) -> object:
    return parking.drop(connection, parking.find(connection, ["applied"]))


@pytest.mark.parametrize("act", [park, park_behind, redrive, drop])
def test_nothing_is_done_to_a_key_that_another_has_locked(
    rig: Rig, story: Parked, act: Callable[[Any, Parked], object]
) -> None:
    with (
        database.connect(rig.settings) as other,
        other.transaction(),
        database.connect(rig.settings) as connection,
    ):
        parking.lock(other, "applied", [story.key])
        connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            act(connection, story)
    assert [each.outbox_id for each in parked(rig)] == [1]
    assert applied(rig) == []


def test_an_event_that_waited_for_a_redrive_is_not_parked_behind_it(rig: Rig, story: Parked) -> None:
    """What is parked of a key is read again once its lock is there."""

    def waits() -> bool:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return rig.connection.execute(waiting).fetchone() is not None

    with database.connect(rig.settings) as other, other.transaction():
        parking.lock(other, "applied", [story.key])
        handling = threading.Thread(target=story.inbox.handle, args=([story.record],))
        handling.start()
        rig.wait("the lock", waits)
        assert [each.seq for each in parking.redrive(other, story.app.downstream, [story.key], node="n").done] == [1]
    handling.join()
    assert (applied(rig), parked(rig)) == ([1, 2], [])
