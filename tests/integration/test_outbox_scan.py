"""What a publisher reads of a large outbox: as many rows as it may take, whatever it has passed."""

import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import psycopg
import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import Outcome, Record, UnsentError
from brewctl.delivery.outbox import scan
from brewctl.lifecycle import Backoff, wait_until
from tests.conftest import Rig, limited, open_rig
from tests.integration.outbox_tools import fetch, mark_published, unpublished
from tests.integration.scan_tools import Instant, fill, keep_vacuum_away, reading, rows_read

LIMIT = 100
# What a fetch may read for each row of its limit: the row in the index of ready rows and in the table, its place among
# those of its aggregate, itself again to lock it; and the last ids once more.
READ = 8 * LIMIT
NEVER_S = 3600.0


@pytest.fixture(scope="module")
def shared_rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("scan")) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """An empty outbox, which is vacuumed by nobody."""
    shared_rig.connection.execute("TRUNCATE outbox RESTART IDENTITY")
    keep_vacuum_away(shared_rig.connection)
    return shared_rig


@pytest.fixture
def settings(rig: Rig) -> Settings:
    return limited(rig.settings, publish_rows_first=LIMIT, publish_rows=LIMIT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The publishers' clock. It stands still, so none looks at what is behind it, until a test moves it."""
    now = [0.0]
    monkeypatch.setattr(scan, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


SHAPES = {
    "each of its own": "'a-' || n",
    "one aggregate": "'hot'",
    "many, one after the other": "'a-' || n / 1000",
    "many, in turns": "'a-' || n % 20",
    "a hot one among others": "CASE WHEN n % 3 > 0 THEN 'hot' ELSE 'a-' || n END",
}


@pytest.mark.parametrize("statistics", ["fresh", "stale", "none"])
@pytest.mark.parametrize("aggregate", SHAPES.values(), ids=SHAPES)
def test_a_fetch_reads_in_proportion_to_its_limit(
    rig: Rig, settings: Settings, aggregate: str, statistics: str
) -> None:
    if statistics == "stale":
        rig.connection.execute("VACUUM ANALYZE outbox")
    with reading(settings) as [publisher]:
        # psycopg prepares it from the sixth time on, and after five more the server keeps a plan: for an empty table.
        for _ in range(20 if statistics == "stale" else 0):
            publisher.look()
        fill(rig, 20_000, aggregate)
        if statistics == "fresh":
            rig.connection.execute("VACUUM ANALYZE outbox")
        publisher.scan.read.clear()
        assert [publisher.look() for _ in range(12)] == [LIMIT] * 12
        # Where an ANALYZE has an older snapshot, what was just published is still in the indexes.
        just_published = [2 * LIMIT * batches for batches in range(len(publisher.scan.read))]
        assert all(read <= READ + more for read, more in zip(publisher.scan.read, just_published, strict=True))
        assert [row_id for _, row_id in publisher.producer.sent] == list(range(1, 12 * LIMIT + 1))


def test_of_a_table_with_many_published_rows_a_fetch_reads_none(rig: Rig, settings: Settings) -> None:
    """Also where the statistics say that all of them wait, in few aggregates: as they were analyzed."""
    fill(rig, 20_000, "'a-' || n % 20")
    rig.connection.execute("ANALYZE outbox")
    rig.connection.execute("UPDATE outbox SET published_at = clock_timestamp()")
    fill(rig, 300, "'a-' || n % 20")

    def vacuumed() -> bool:
        """Whether nothing is left of them in the indexes of unpublished rows: an ANALYZE may have an older snapshot."""
        rig.connection.execute("VACUUM outbox")
        with rig.connection.transaction():
            before = rows_read(rig.connection)
            fetch(rig.connection, limit=1)
            return rows_read(rig.connection) - before < LIMIT

    wait_until("a vacuum", vacuumed, timeout_s=60)
    with reading(settings) as [publisher]:
        assert publisher.look_until_nothing_is_left() == [LIMIT] * 3 + [0]
        assert max(publisher.scan.read) <= READ, publisher.scan.read


@pytest.mark.parametrize("aggregate", ["'hot'", "'a-' || n % 20"], ids=["one aggregate", "many in turns"])
def test_a_second_publisher_finds_what_the_first_does_not_hold(rig: Rig, settings: Settings, aggregate: str) -> None:
    fill(rig, 5_000, aggregate)
    fill(rig, 150, "'other-' || n")
    with reading(settings, 2) as [one, two]:

        def look_on() -> None:
            found = two.look_until_nothing_is_left()
            assert sum(found) == 150
            assert len(found) < 5_000 // LIMIT + 10
            assert max(two.scan.read) <= READ
            assert {key.partition("-")[0] for key, _ in two.producer.sent} == {"other"}

        one.producer = Instant(look_on)
        assert one.look() == LIMIT
        # What it has passed it takes all the same, once it is free: here the first of them has published one batch.
        one.producer = Instant()
        wait_until("all of it published", lambda: not (two.look() or unpublished(rig)), timeout_s=60, every_s=0.001)
    for number in range(20):
        ids = two.producer.of(f"a-{number}")
        assert ids == sorted(ids)


def test_what_waits_behind_a_row_set_aside_is_read_once(rig: Rig, settings: Settings, clock: list[float]) -> None:
    fill(rig, 5_000, "'stopped'")
    rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = 1")
    _pass_what_can_not_be_taken(rig, settings)
    assert clock == [0.0]


def test_what_waits_for_its_topic_is_read_once(rig: Rig, settings: Settings, clock: list[float]) -> None:
    fill(rig, 5_000, "'stopped-' || n", topic="absent")
    _pass_what_can_not_be_taken(rig, settings, absent="absent")
    assert clock == [0.0]


def _pass_what_can_not_be_taken(rig: Rig, settings: Settings, *, absent: str = "") -> None:
    fill(rig, 1, "'fresh-1'")
    with reading(settings) as [publisher]:
        if absent:
            publisher._absent[absent] = (Backoff(threading.Event()), time.monotonic() + NEVER_S)
        found = publisher.look_until_nothing_is_left()
        assert sum(found) == 1
        assert len(found) <= 5_000 // LIMIT + 3
        assert max(publisher.scan.read) <= READ
        # From now on it costs nothing.
        publisher.scan.read.clear()
        for number in range(2, 5):
            fill(rig, 1, f"'fresh-{number}'")
            assert publisher.look() == 1
            assert not publisher._more
        assert publisher.look() == 0
        assert len(publisher.scan.read) == 4
        assert max(publisher.scan.read) <= READ
    assert not [key for key, _ in publisher.producer.sent if not key.startswith("fresh")]


@pytest.mark.parametrize("busy", [True, False], ids=["rows to take", "nothing to take"])
def test_behind_an_old_snapshot_a_fetch_stays_as_it_was(
    rig: Rig, settings: Settings, clock: list[float], busy: bool
) -> None:
    """The snapshot keeps the index entries of all rows that are published. The statistics know nothing of them."""
    rig.connection.execute("VACUUM ANALYZE outbox")
    with psycopg.connect(rig.settings.database_url) as old, reading(settings) as [publisher]:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT FROM outbox")
        fill(rig, 6_000, "'a-' || n")
        assert sum(publisher.look_until_nothing_is_left()) == 6_000
        publisher.scan.read.clear()
        for number in range(10):
            if busy:
                fill(rig, 3, f"'later-{number}-' || n")
            assert publisher.look() == 3 * busy
        assert max(publisher.scan.read) <= READ, publisher.scan.read
        assert clock == [0.0]


def _republish(rig: Rig) -> None:
    rig.connection.execute("UPDATE outbox SET published_at = NULL, republished_at = now() WHERE id = 7")


def _retry(rig: Rig) -> None:
    rig.connection.execute("UPDATE outbox SET failed_at = NULL WHERE id = 8")


@pytest.mark.parametrize("snapshot", [False, True], ids=["", "behind an old snapshot"])
def test_what_becomes_ready_far_behind_is_found(
    rig: Rig, settings: Settings, clock: list[float], snapshot: bool
) -> None:
    with (
        psycopg.connect(rig.settings.database_url) as old,
        psycopg.connect(rig.settings.database_url) as writer,
        reading(settings) as [publisher],
    ):
        if snapshot:
            old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            old.execute("SELECT FROM outbox")
        fill(rig, 20, "'a-' || n")
        rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = 8")
        (late,) = writer.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload, event_type) VALUES ('late', 't', 'x', 'e') RETURNING id"
        ).fetchone() or (0,)
        fill(rig, 3_000, "'b-' || n")
        publisher.look_until_nothing_is_left()

        def becomes_ready(row_id: int) -> None:
            publisher.scan._saved_s = 0.0
            assert publisher.look() == 0, "nothing far behind is read before its time"
            clock[0] += 1.0
            assert publisher.look() == 1
            assert publisher.producer.sent[-1][1] == row_id
            assert publisher.look_until_nothing_is_left()[-1] == 0

        writer.commit()
        becomes_ready(int(late))
        _republish(rig)
        becomes_ready(7)
        _retry(rig)
        becomes_ready(8)


def test_many_rows_that_become_ready_far_behind_are_taken_in_turns_with_new_ones(
    rig: Rig, settings: Settings, clock: list[float]
) -> None:
    fill(rig, 2_000, "'stopped'")
    rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = 1")
    with reading(settings) as [publisher]:
        fill(rig, 1_000, "'a-' || n")
        publisher.look_until_nothing_is_left()
        rig.connection.execute("UPDATE outbox SET failed_at = NULL WHERE id = 1")
        fill(rig, 500, "'new-' || n")
        clock[0] += 1.0
        publisher.producer.sent.clear()
        found = publisher.look_until_nothing_is_left()
        assert sum(found) == 2_500
        places = [place for place, (key, _) in enumerate(publisher.producer.sent) if key.startswith("new")]
        assert places[-1] <= 1_200
        assert publisher.producer.of("stopped") == list(range(1, 2_001))


def test_an_earlier_row_stops_its_aggregate_also_where_it_is_far_behind(
    rig: Rig, settings: Settings, clock: list[float]
) -> None:
    """No fetch reads so far back, and still none takes the later row."""
    fill(rig, 3_000, "CASE n WHEN 4 THEN 'stopped' ELSE 'a-' || n END")
    rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = 5")
    with reading(settings) as [publisher]:
        publisher.look_until_nothing_is_left()
        for number in range(10):
            fill(rig, 1, "'stopped'")
            fill(rig, 1, f"'other-{number}'")
            clock[0] += number % 2
            assert publisher.look() == 1
        assert publisher.producer.of("stopped") == []
        rig.connection.execute("UPDATE outbox SET failed_at = NULL WHERE id = 5")
        clock[0] += 1.0
        while unpublished(rig):
            clock[0] += 1.0
            publisher.look()
        ids = publisher.producer.of("stopped")
        assert len(ids) == 11
        assert ids == sorted(ids)


def test_between_the_rows_of_an_aggregate_one_that_can_not_be_taken_stops_the_later_ones(rig: Rig) -> None:
    fill(rig, 6, "'a'")
    fill(rig, 6, "'b'")
    fill(rig, 2, "'c'")
    rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = 3")
    rig.connection.execute("UPDATE outbox SET topic = 'absent' WHERE id IN (9, 13)")
    with rig.connection.transaction():
        assert fetch(rig.connection, limit=100, without_topics=["absent"]) == [1, 2, 7, 8]
        mark_published(rig.connection, [1, 2, 7, 8])
    assert fetch(rig.connection, limit=100, without_topics=["absent"]) == []
    assert fetch(rig.connection, limit=100) == [9, 10, 11, 12, 13, 14]


def test_after_the_table_was_emptied_and_ids_begin_anew_rows_are_found_at_once(
    rig: Rig, settings: Settings, clock: list[float]
) -> None:
    with reading(settings) as [publisher]:
        fill(rig, 3_000, "'a-' || n")
        publisher.look_until_nothing_is_left()
        rig.connection.execute("TRUNCATE outbox RESTART IDENTITY")
        for number in range(3):
            fill(rig, 10, f"'b-{number}-' || n")
            assert sum(publisher.look_until_nothing_is_left()) == 10
        assert clock == [0.0]


def test_rows_that_kafka_did_not_take_are_read_again_at_once(rig: Rig, settings: Settings, clock: list[float]) -> None:
    class Failing(Instant):
        def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
            taken = super().send(records[1:], timeout_s=timeout_s)
            return [UnsentError("not yet"), *taken]

    with reading(settings) as [publisher]:
        fill(rig, 3_000, "'a-' || n")
        while publisher.look() == LIMIT and len(unpublished(rig)) > 2_000:
            pass
        first, *_ = unpublished(rig)
        publisher.producer = Failing()
        for _ in range(5):
            publisher._absent.clear()
            publisher.look()
        assert unpublished(rig)[0] == first
        publisher._absent.clear()
        publisher.producer = Instant()
        publisher.look()
        assert publisher.producer.sent[0][1] == first
        assert clock == [0.0]
