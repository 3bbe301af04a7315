"""Each thing that keeps a partition, by itself; and what is wrong, so that nothing may be dropped at all."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import psycopg
import pytest

from brewctl.delivery.broker import open_admin
from brewctl.delivery.retention.plan import Reason
from tests.integration.chain_tools import Chain, open_chain
from tests.integration.retention_tools import attached, fill, park, plan, remove_records, run, small_partitions, state

Break = Callable[[Chain], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A chain of which the first partition may go; each test makes one thing otherwise, and good again."""
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        small_partitions(chain.rig.connection)
        fill(chain, 12)
        remove_records(chain)
        yield chain


@contextlib.contextmanager
def changed(chain: Chain, do: str, undo: str) -> Iterator[None]:
    chain.execute(do)
    yield
    chain.execute(undo)


def row(do: str, undo: str) -> Break:
    return lambda chain: changed(
        chain, f"UPDATE outbox SET {do} WHERE id = 4", f"UPDATE outbox SET {undo} WHERE id = 4"
    )


@contextlib.contextmanager
def group_never_committed(chain: Chain) -> Iterator[None]:
    offsets = dict(chain.ends["notifications"])
    with open_admin(chain.rig.settings) as admin:
        admin.forget("notifications", [chain.rig.settings.topic])
        yield
        admin.commit("notifications", chain.rig.settings.topic, offsets)


@contextlib.contextmanager
def own_topic(chain: Chain) -> Iterator[None]:
    with changed(
        chain, "UPDATE outbox SET topic = 'gone-for-good' WHERE id = 4",
        f"UPDATE outbox SET topic = '{chain.rig.settings.topic}' WHERE id = 4",
    ):  # fmt: skip
        yield
        # The user knows better.
        with changed(chain, "SELECT", "SELECT"):
            assert plan(chain.rig.settings, gone=["gone-for-good"])[0].may_go


@contextlib.contextmanager
def parked(chain: Chain) -> Iterator[None]:
    park(chain.rig.connection, "inventory", 4)
    yield
    chain.execute("DELETE FROM parked_events")


@contextlib.contextmanager
def waiting(chain: Chain) -> Iterator[None]:
    chain.execute(
        'INSERT INTO waiting_events (consumer, key, outbox_id, event_type, topic, "partition", "offset", written_ms,'
        " value, headers) VALUES ('inventory', 'k', 4, 't', 't', 0, 3, 1, 'x', '[]')"
    )
    yield
    chain.execute("DELETE FROM waiting_events")


@contextlib.contextmanager
def letter(chain: Chain, outcome: str = "", place: tuple[int, int] | None = None) -> Iterator[None]:
    four = chain.row(str(chain.execute("SELECT substr(aggregate_id, 7) FROM outbox WHERE id = 4").fetchone()[0]))
    number = chain.bury(four, 3)
    if outcome:
        chain.settle(number, outcome, place=place)
    yield
    if not outcome:
        chain.settle(number, "dropped")
    chain.execute("UPDATE dead_letters_settled SET outcome = 'dropped', new_partition = NULL, new_offset = NULL")


@contextlib.contextmanager
def prepared(chain: Chain) -> Iterator[None]:
    """A transaction that took an id of the partition, and is not over."""
    with psycopg.connect(chain.rig.settings.database_url) as late:
        late.execute(
            "INSERT INTO outbox (id, aggregate_id, topic, payload) OVERRIDING SYSTEM VALUE VALUES (0, 'late', 't', 'x')"
        )
        yield
        late.rollback()


KEPT: dict[str, tuple[Break, str]] = {
    "unpublished": (
        row("published_at = NULL", "published_at = now()"), "1 row is not published yet",
    ),
    "set aside": (
        row("published_at = NULL, failed_at = now()", "published_at = now(), failed_at = NULL"), "1 row is set aside",
    ),
    "records are there": (
        row("kafka_offset = 12", "kafka_offset = 3"), "has records of it, up to 0@12; the first one there is 0@12",
    ),
    "place not known": (
        row("kafka_offset = NULL, kafka_partition = NULL", "kafka_offset = 3, kafka_partition = 0"),
        "1 row is published by an older version, which did not note where",
    ),
    "never committed": (group_never_committed, "group notifications has never committed in partition 0"),
    "own topic": (own_topic, "topic gone-for-good of its rows is not there"),
    "parked": (parked, "1 parked events of inventory wait to be redriven, the first is outbox 4"),
    "waiting": (waiting, "1 events of inventory wait for their handler, the first is outbox 4"),
    "open letter": (letter, "of outbox 4"),
    "transaction": (prepared, "may still write to it"),
}  # fmt: skip


def first_reason(chain: Chain) -> Reason:
    return plan(chain.rig.settings)[0].reasons[0]


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_a_partition(chain: Chain, name: str) -> None:
    make, text = KEPT[name]
    assert plan(chain.rig.settings)[0].may_go
    if name == "records are there":  # one more record, so that its place is not behind the end
        chain.send(chain.order())
        chain.consume()
    with make(chain):
        reason = first_reason(chain)
        assert text in reason.text
        assert reason.todo
        assert not reason.refused
        outcome = run(chain.rig.settings)
        assert (outcome.dropped, outcome.watermark) == ([], 0)
        assert text in state(chain.rig.connection)["held_back"]
    if name == "records are there":
        remove_records(chain)
    assert plan(chain.rig.settings)[0].may_go


def test_a_redriven_copy_keeps_it_until_the_topic_has_removed_that(chain: Chain) -> None:
    end = chain.send(chain.order())
    chain.consume()
    with letter(chain, "redriven", place=(0, end)):
        assert "a redriven copy" in first_reason(chain).text
        remove_records(chain)
        assert plan(chain.rig.settings)[0].may_go


@contextlib.contextmanager
def overtaken(chain: Chain) -> Iterator[None]:
    offsets = dict(chain.ends["inventory"])
    chain.commit("inventory", {0: 5})
    yield
    chain.commit("inventory", offsets)


REFUSED: dict[str, tuple[Break, str]] = {
    "overtaken": (overtaken, "group inventory was overtaken: it comes next to 0@5"),
    "made anew": (row("kafka_offset = 1000", "kafka_offset = 3"), "its last record was 0@1000 in topic"),
    "not processed": (
        lambda chain: changed(
            chain, "DELETE FROM processed_events WHERE outbox_id = 6 AND consumer = 'inventory'",
            "INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', 6)",
        ),
        "1 of its rows was never processed by group inventory, the first is outbox 6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_drop_too_much_is_refused(chain: Chain, name: str) -> None:
    make, text = REFUSED[name]
    there = attached(chain.rig.connection, "outbox")
    with make(chain):
        reason = first_reason(chain)
        assert reason.refused
        assert text in reason.text
        if name == "overtaken":
            for words in ((), ("--dry-run",)):
                done = chain.rig.brewctl("db", "retention", *words)
                assert done.returncode == 1
                assert f"dropped: outbox_p0: {text}" in done.stderr
        else:
            assert run(chain.rig.settings).dropped == []
        assert attached(chain.rig.connection, "outbox") == there
        assert state(chain.rig.connection)["refused"]
        if name == "not processed":
            assert plan(chain.rig.settings, lost_to=["inventory"])[0].may_go


def test_an_outbox_of_another_topic_is_refused(chain: Chain) -> None:
    other = dataclasses.replace(chain.rig.settings, topic=f"{chain.rig.settings.topic}.dlq")
    outcome = run(other)
    assert outcome.refused
    assert outcome.dropped == []
    assert outcome.kept is not None
    assert "no row of the outbox is for topic" in outcome.kept.reasons[0].text


def test_where_nothing_keeps_it_it_goes(chain: Chain) -> None:
    """Last of this file: what the others have broken was mended."""
    assert run(chain.rig.settings).dropped == ["outbox_p0", "processed_events_p0"]
