"""When the publisher looks, how many rows it takes, and how they travel: none waits, and nothing is asked in vain."""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Self

import psycopg
import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import Outcome, Place, Producer, Record
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox import publisher as publishing
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.rest import Rest
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig, limited, open_rig

NEVER_S = 3600.0


@pytest.fixture(scope="module")
def shared_rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("publisher")) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """An empty outbox."""
    shared_rig.connection.execute("TRUNCATE outbox, publishing")
    return shared_rig


@pytest.fixture
def patient(rig: Rig) -> Settings:
    """No timer of its own wakes the publisher, nor does it ever lead: one that does looks again and again."""
    return limited(rig.settings, publish_poll_s=NEVER_S, publish_lead_s=NEVER_S)


def commit(rig: Rig, rows: int = 1) -> None:
    payload = OrderCreated(order_id=str(uuid.uuid4())).SerializeToString()
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload)"
        " SELECT 'order-' || gen_random_uuid(), %s, %s FROM generate_series(1, %s)",
        (rig.settings.topic, payload, rows),
    )


def unpublished(rig: Rig) -> object:
    (count,) = rig.connection.execute("SELECT count(*) FROM outbox WHERE published_at IS NULL").fetchone() or (None,)
    return count


class Running(Publisher):
    """Runs in a thread of its own, and says what each of its looks has found."""

    def __init__(self, settings: Settings, pool: Pool, *, node: str = "n", polls: bool = False) -> None:
        super().__init__(settings, pool, node=node, polls=polls)
        self.found: list[int] = []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self.run, args=(self.stop,))

    def publish_batch(self, producer: Producer) -> int:
        found = super().publish_batch(producer)
        self.found.append(found)
        return found

    def wait_for(self, *found: int) -> None:
        wait_until(f"looks that find {found}", lambda: len(self.found) >= len(found), timeout_s=20, every_s=0.01)
        assert self.found == [*found]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.notify()
        self._thread.join()


def rest(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every publisher rest for so long after rows, whatever they cost."""

    def worked(self: Rest, _took_s: float, *, count: int = 0) -> None:  # noqa: ARG001 - of the method that it replaces
        self._until, self.last_s = time.monotonic() + seconds, seconds

    monkeypatch.setattr(Rest, "worked", worked)


def test_it_takes_more_while_there_are_more_and_fewer_where_that_takes_long(
    rig: Rig, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, took_s = [1000.0], [0.0]
    monkeypatch.setattr(publishing, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    class TimedProducer:
        def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
            clock[0] += took_s[0]
            assert timeout_s == settings.limits.publish_s
            return [Place(0, 0) for _ in records]

    settings = limited(rig.settings, publish_rows_first=2, publish_rows=8, publish_s=5.0)
    publisher = Publisher(settings, pool, node="n")

    def looks(count: int, *, each_s: float) -> list[int]:
        took_s[0] = each_s
        return [publisher.publish_batch(TimedProducer()) for _ in range(count)]  # type: ignore[arg-type]

    commit(rig, 62)
    assert looks(5, each_s=0.5) == [2, 4, 8, 8, 8]
    assert looks(4, each_s=1.5) == [8, 4, 2, 2]
    assert looks(4, each_s=0.5) == [2, 4, 8, 2]
    commit(rig, 9)
    assert looks(2, each_s=0.5) == [8, 1], "a transaction that was not full is no reason to take fewer"


@pytest.mark.parametrize(
    ("rows", "limits", "found"),
    [
        (5, {"publish_rows_first": 2, "publish_rows": 2}, (2, 2, 1)),
        (4, {"publish_rows_first": 2, "publish_rows": 2}, (2, 2, 0)),  # full: there may be more
        (3, {"publish_bytes": 0}, (1, 1, 1)),
        (50, {}, (50,)),
    ],
)
def test_what_was_left_behind_is_taken_at_once_and_then_it_waits(
    rig: Rig,
    pool: Pool,
    patient: Settings,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    limits: dict[str, Any],
    found: tuple[int, ...],
) -> None:
    rest(monkeypatch, 0.0)
    commit(rig, rows)
    with Running(limited(patient, **limits), pool) as publisher:
        publisher.wait_for(*found)
        # Had it looked on in between, it would have been seen.
        commit(rig)
        publisher.notify()
        publisher.wait_for(*found, 1)
        wait_until("all of them published", lambda: unpublished(rig) == 0, timeout_s=20)
    assert publisher.found == [*found, 1, 0], "the last look is that of the stop"


class Pauses(threading.Event):
    """Returns from each wait at once, and keeps how long it was to be."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout or 0.0)
        return super().wait(0)


@pytest.mark.parametrize(("polls", "first"), [(True, [0.2, 0.4, 0.5, 0.5]), (False, [0.5] * 4)])
def test_who_is_told_of_no_commit_looks_soon_after_rows_and_less_often_without(
    rig: Rig, pool: Pool, monkeypatch: pytest.MonkeyPatch, polls: bool, first: list[float]
) -> None:
    monkeypatch.setattr(publishing, "random", SimpleNamespace(uniform=lambda _least, _most: 1.0))
    publisher = Running(limited(rig.settings, publish_poll_s=0.5, publish_again_s=0.1), pool, polls=polls)
    pauses = publisher._wake = Pauses()
    with publisher:
        wait_until("four looks", lambda: len(pauses.asked) >= 4, timeout_s=20, every_s=0.01)
        commit(rig)
        wait_until("all of them published", lambda: unpublished(rig) == 0, timeout_s=20)
        seen = len(pauses.asked)
        wait_until("two more", lambda: len(pauses.asked) > seen + 2, timeout_s=20, every_s=0.01)
    assert pauses.asked[:4] == first
    assert (0.1 in pauses.asked) == polls


def test_rows_that_another_publisher_holds_are_not_asked_for_again_and_again(
    rig: Rig, pool: Pool, patient: Settings
) -> None:
    commit(rig, 3)
    with psycopg.connect(rig.settings.database_url) as other:
        other.execute("SELECT id FROM outbox FOR UPDATE")
        with Running(patient, pool) as publisher:
            publisher.wait_for(0)
            commit(rig)
            publisher.notify()
            publisher.wait_for(0, 1)
            commit(rig, 2)
            publisher.notify()
            publisher.wait_for(0, 1, 2)
            other.rollback()
    assert publisher.found == [0, 1, 2, 3, 0]


def test_an_idle_publisher_takes_a_lone_commit_at_once_and_many_together(
    rig: Rig, pool: Pool, patient: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest(monkeypatch, NEVER_S)
    with Running(patient, pool) as publisher:
        publisher.wait_for(0)
        commit(rig)
        publisher.notify()
        publisher.wait_for(0, 1)  # no rest follows a look that found nothing
        wait_until("the row published", lambda: unpublished(rig) == 0, timeout_s=20)
        for _ in range(30):
            commit(rig)
            publisher.notify()
    # They were all still waiting when the stop ended the rest.
    assert publisher.found[:2] == [0, 1]
    assert [found for found in publisher.found[2:] if found] == [30]
    assert unpublished(rig) == 0
