"""What a node makes of handlers that do what they may not: a clear line, nothing lost, nothing twice, no traceback."""

from collections.abc import Iterator

import pytest
from kafka import KafkaProducer

from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.lab.play.nodes import Node
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import good_record

EVENTS = 2000
MODULE = """
import psycopg
from collections.abc import Sequence
from brewctl import Event, OrderCreated, downstream

SEEN = "CREATE TABLE IF NOT EXISTS seen (group_name text, order_id uuid, PRIMARY KEY (group_name, order_id))"

def see(group, event, tx):
    tx.execute("INSERT INTO seen VALUES (%s, %s)", [group, event.data.order_id])

@downstream("commits", schema=SEEN, attempts=1)
def commits(event: Event[OrderCreated], tx):
    see("commits", event, tx)
    tx.commit()

@downstream("rolls-back", attempts=1)
def rolls_back(event: Event[OrderCreated], tx):
    see("rolls-back", event, tx)
    tx.execute("ROLLBACK")

@downstream("closes", attempts=1)
def closes(event: Event[OrderCreated], tx):
    see("closes", event, tx)
    tx.close()

kept = []

@downstream("keeps", attempts=1)
def keeps(event: Event[OrderCreated], tx):
    kept.append(tx)
    see("keeps", event, kept[0])

@downstream("fails", attempts=1)
def fails(event: Event[OrderCreated], tx):
    see("fails", event, tx)
    raise RuntimeError("a bug")

@downstream("leaves", attempts=1)
def leaves(event: Event[OrderCreated], tx):
    see("leaves", event, tx)
    tx.execute("LISTEN told")

@downstream("fails-once", attempts=2)
def fails_once(events: Sequence[Event[OrderCreated]], tx):
    for event in events:
        see("fails-once", event, tx)
        if event.data.customer_id == "bad":
            raise RuntimeError("no such customer")

lost = []

@downstream("loses", attempts=1)
def loses(event: Event[OrderCreated], tx):
    see("loses", event, tx)
    if len(lost) < 3:
        lost.append(event)
        try:
            tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        except psycopg.Error:
            return
"""
# Downstreams that every event fails, and what is said of it.
STOPPED = {
    "commits": "HandlerError: the handler used tx.commit: the transaction is brewctl's",
    "rolls_back": "HandlerError: the handler sent SQL that was refused: ROLLBACK would end the transaction",
    "closes": "HandlerError: the handler used tx.close: the transaction is brewctl's",
    "keeps": "HandlerError: tx, or a cursor of it, was used after the handler had returned",
    "fails": "RuntimeError: a bug",
    "leaves": "HandlerError: the handler sent SQL that was refused: LISTEN would outlast the transaction",
}


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A topic with many orders, one of them of a bad customer."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad.py").write_text(MODULE)
    with open_rig(servers, folder) as rig:
        rig.env["BREW_APP_DIR"] = str(folder)
        names = [f"bad:{name}" for name in (*STOPPED, "fails_once", "loses")]
        made = rig.brewctl("db", "init", *names)
        assert made.returncode == 0, made.stderr
        producer = KafkaProducer(**connection(rig.settings, name="test"))
        for number in range(EVENTS):
            good = good_record(customer_id="bad" if number == EVENTS // 3 else "good")
            producer.send(rig.settings.topic, good.value, good.key, headers=good.headers)
        producer.close()
        yield rig


def start(rig: Rig, name: str) -> Node:
    return rig.start(f"{name.replace('_', '-')}-1", "consume", f"bad:{name}", "--app-dir", rig.env["BREW_APP_DIR"])


def seen(rig: Rig, group: str) -> int:
    (count,) = rig.connection.execute("SELECT count(*) FROM seen WHERE group_name = %s", (group,)).fetchone() or (0,)
    return int(count)


def parked(rig: Rig, group: str) -> list[tuple[str, int]]:
    found = rig.connection.execute("SELECT reason, attempts FROM parked_events WHERE consumer = %s", (group,))
    return found.fetchall()


@pytest.mark.parametrize("name", STOPPED)
def test_what_every_event_fails_of_stops_the_downstream_with_a_clear_line(rig: Rig, name: str) -> None:
    node = start(rig, name)
    rig.wait("that it stops", lambda: "downstream_stopped" in node.log.read_text())
    (line, *_) = [line for line in node.log.read_text().splitlines() if "downstream_stopped" in line]
    assert f"stopped: 10 events in a row failed: {STOPPED[name]}" in line
    assert node.alive
    node.kill()
    assert "Traceback" not in node.log.read_text()
    group = name.replace("_", "-")
    # Before the tenth, events that stood alone were parked for themselves.
    assert len(parked(rig, group)) < 10
    assert seen(rig, group) <= 1, "the first call that kept its tx was right"


def test_one_event_of_many_is_parked_and_the_others_have_their_effect(rig: Rig) -> None:
    node = start(rig, "fails_once")
    rig.wait("the others", lambda: seen(rig, "fails-once") == EVENTS - 1)
    rig.wait("a parked event", lambda: parked(rig, "fails-once") == [("RuntimeError: no such customer", 2)])
    node.kill()
    assert len([line for line in node.log.read_text().splitlines() if "event=parked" in line]) == 1
    assert "Traceback" not in node.log.read_text()
    taken = rig.connection.execute("SELECT count(*) FROM processed_events WHERE consumer = 'fails-once'").fetchone()
    assert taken == (EVENTS - 1,)


def test_a_handler_that_returns_after_its_session_was_lost_is_called_again(rig: Rig) -> None:
    node = start(rig, "loses")
    rig.wait("all effects", lambda: seen(rig, "loses") == EVENTS)
    node.kill()
    assert parked(rig, "loses") == []
    assert "postgres_unavailable" in node.log.read_text()
