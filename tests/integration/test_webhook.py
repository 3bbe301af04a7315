"""notification-service with `--channel webhook`: the real binary, real servers, and a receiver that misbehaves."""

import base64
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from brewctl.delivery import events
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import OrderCancelled
from tests.conftest import Rig, open_rig, run
from tests.integration.kafka_tools import good_record
from tests.webhook_receiver import (
    Call,
    Do,
    Receiver,
    answer,
    garbage,
    hang,
    lie,
    receiving,
    reset,
    trickle,
)

SECRET, NEXT = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TIMEOUT_S = 1
WITHOUT_CHANNEL = {"BREW_NOTIFY_CHANNEL": ""}


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secret") / "secret"
    file.write_text(SECRET + "\n")
    return file


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def rig(
    servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory, secret: Path, receiver: Receiver
) -> Iterator[Rig]:
    named = {
        "BREW_WEBHOOK_URL": receiver.url,
        "BREW_WEBHOOK_SECRET_FILE": str(secret),
        "BREW_WEBHOOK_TIMEOUT": str(TIMEOUT_S),
        "BREW_NOTIFY_CHANNEL": "webhook",
    }
    with pytest.MonkeyPatch.context() as patch, open_rig(servers, tmp_path_factory.mktemp("webhook")) as rig:
        for name, value in named.items():
            patch.setenv(name, value)
        yield rig


@pytest.fixture(scope="module")
def orders(rig: Rig) -> Iterator[Callable[..., list[str]]]:
    """Put orders of these customers into the topic; return their event ids."""
    producer = KafkaProducer(**connection(rig.settings, name="test"))

    def produce(*customers: str) -> list[str]:
        ids = [str(uuid.uuid4()) for _ in customers]
        for customer, event_id in zip(customers, ids, strict=True):
            good = good_record(customer_id=customer)
            headers = [*good.headers, ("event-id", event_id.encode()), ("traceparent", TRACE.encode())]
            producer.send(rig.settings.topic, good.value, good.key, headers=headers)
        producer.flush()
        return ids

    yield produce
    producer.close()


@pytest.fixture(scope="module")
def node(rig: Rig, receiver: Receiver) -> Node:
    """One node for the tests that do not end it."""
    return rig.start("notification-1", "consume", "notifications", "--channel", "webhook", "--url", receiver.url)


@pytest.fixture(scope="module", autouse=True)
def broken(node: Node, receiver: Receiver, orders: Callable[..., list[str]]) -> list[str]:
    """Two events that fail from the beginning on, while the other tests run: seconds pass between their tries."""
    assert node.alive
    receiver.how = well
    return orders("broken", "moved")


def well(call: Call) -> Do:
    """Take all but two customers' notifications."""
    return {
        "broken": answer(500, "no \x1b[31mluck"),
        "moved": answer(307, location="https://elsewhere.example/x?y"),
    }.get(call.customer, answer())


def told(rig: Rig) -> int:
    (count,) = rig.connection.execute("SELECT count(*) FROM notifications_log").fetchone() or (0,)
    return int(count)


def parked(rig: Rig, *columns: str) -> list[Any]:
    names = ", ".join(columns)
    return rig.connection.execute(
        f"SELECT {names} FROM parked_events WHERE outcome IS NULL ORDER BY event_id".encode()
    ).fetchall()


def test_each_fault_is_survived_with_the_same_key(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]]
) -> None:
    faults: dict[str, Do] = {
        "fails": answer(500),
        "limits": answer(429, retry_after="1"),
        "resets": reset,
        "talks rubbish": garbage,
        "lies": lie,
        "hangs": hang,
        "trickles": trickle,
    }
    seen: Counter[str] = Counter()

    def how(call: Call) -> Do:
        with receiver.lock:
            seen[call.key] += 1
        return faults[call.customer] if call.customer in faults and seen[call.key] == 1 else well(call)

    before = told(rig)
    receiver.how = how
    others = [f"customer-{number}" for number in range(10)]
    ids = orders(*faults, *others)
    rig.wait("all notifications", lambda: told(rig) == before + len(ids))
    calls = [call for call in receiver.calls if call.key in ids]
    for call in calls:
        call.verify(SECRET)
        assert (call.headers["webhook-id"], call.headers["traceparent"]) == (call.key, TRACE)
        assert (call.json["id"], call.json["type"]) == (call.key, "order.created")
    assert Counter(call.customer for call in calls) == {**dict.fromkeys(faults, 2), **dict.fromkeys(others, 1)}
    assert len({(call.key, call.body) for call in calls}) == len(ids), "the same key, the same body"
    rows = rig.connection.execute("SELECT DISTINCT channel, state, node_id FROM notifications_log").fetchall()
    assert rows == [("webhook", "created", "notification-1")]


def test_one_who_is_slow_for_one_customer_delays_no_other(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]], node: Node
) -> None:
    receiver.how = lambda call: hang if call.customer == "slow" else well(call)
    slow = set(orders(*["slow"] * 30))
    rig.wait("calls that hang", lambda: bool(slow.intersection(receiver.keys())))
    before = told(rig)
    quick = orders(*(f"quick-{number}" for number in range(20)))
    rig.wait("the others", lambda: told(rig) == before + len(quick))
    # A quarter of the calls that a node makes at once; beside those that it has just given up.
    assert 1 <= receiver.most["slow"] <= 8
    waiting = rig.connection.execute("SELECT count(*) FROM waiting_events WHERE event_id = ANY(%s)", (list(slow),))
    assert waiting.fetchone() == (30,), "none of them is done, parked or lost"
    receiver.how = well
    rig.wait("the slow ones", lambda: told(rig) == before + len(quick) + len(slow))
    assert (parked_of(rig, slow), assigned(node)) == (0, 1)


def parked_of(rig: Rig, ids: set[str]) -> int:
    return sum(str(event_id) in ids for (event_id,) in parked(rig, "event_id"))


def trouble(rig: Rig) -> str:
    (said,) = rig.connection.execute("SELECT trouble FROM nodes WHERE node_id = 'notification-1'").fetchone() or ("",)
    return str(said)


def assigned(node: Node) -> int:
    return sum("partitions assigned" in line for line in node.lines)


def test_a_receiver_that_is_away_is_waited_for_and_nothing_is_parked(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]], node: Node
) -> None:
    before, parked_before = told(rig), len(parked(rig, "id"))
    receiver.close()
    ids = orders(*(f"late-{number}" for number in range(20)))
    rig.wait("that it is said", lambda: "can't be reached" in node.log.read_text())
    rig.wait("that tools show it", lambda: "can't be reached" in trouble(rig))
    assert set(receiver.keys()).isdisjoint(ids)
    receiver.open()
    rig.wait("all notifications", lambda: told(rig) == before + len(ids))
    rig.wait("that it is over", lambda: "can't be reached" not in trouble(rig))
    assert len(parked(rig, "id")) == parked_before
    assert "takes notifications again" in node.log.read_text()


def test_a_secret_is_exchanged_while_it_runs(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]], secret: Path
) -> None:
    before = told(rig)
    secret.write_text(f"{NEXT} {SECRET}")
    (event_id,) = orders("rotated")
    rig.wait("a notification", lambda: told(rig) == before + 1)
    (call,) = [call for call in receiver.calls if call.key == event_id]
    call.verify(SECRET)
    call.verify(NEXT)


def test_what_follows_of_an_order_waits_for_what_fails(rig: Rig, receiver: Receiver, node: Node) -> None:
    """And the last state that was told is in its row."""
    created = good_record(customer_id="orderly")
    cancelled = OrderCancelled(order_id=created.order_id, reason="too late")
    headers = events.headers_for(
        int(dict(created.headers)["outbox-id"]) + 1_000_000,
        created.key.decode(),
        events.ORDER_CANCELLED,
        node="another-team",
        tenant_id="brew",
        trace_id=uuid.uuid4().hex,
    )

    def of_order() -> list[str]:
        return [call.json["data"]["state"] for call in list(receiver.calls) if created.order_id in call.body]

    receiver.how = lambda call: (
        answer(500) if of_order() == ["created"] and created.order_id in call.body else well(call)
    )
    producer = KafkaProducer(**connection(rig.settings, name="test"))
    producer.send(rig.settings.topic, created.value, created.key, headers=created.headers)
    producer.send(rig.settings.topic, cancelled.SerializeToString(), created.key, headers=headers)
    producer.close()
    query = "SELECT state, seq, channel FROM notifications_log WHERE order_id = %s"

    def row() -> Any:
        return rig.connection.execute(query, (created.order_id,)).fetchone()

    rig.wait("both", lambda: row() == ("cancelled", 2, "webhook"))
    assert of_order() == ["created", "created", "cancelled"]
    assert node.alive


def test_what_is_refused_is_parked_at_once_shown_and_redriven(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]]
) -> None:
    before = told(rig)
    receiver.how = lambda call: answer(422, "no such\ncustomer") if call.customer == "refused" else well(call)
    (event_id,) = orders("refused")
    rig.wait("a parked event", lambda: [event_id] in [[str(found)] for (found,) in parked(rig, "event_id")])
    assert receiver.keys().count(event_id) == 1
    listed = rig.brewctl("dlq", "list", "--json").stdout
    assert f'"HTTP 422: no such customer (http://127.0.0.1:{receiver.port})"' in listed
    ((number,),) = rig.connection.execute("SELECT id FROM parked_events WHERE event_id = %s", (event_id,)).fetchall()
    refused = rig.brewctl("dlq", "redrive", f"p{number}")
    assert (refused.returncode, "HTTP 422" in refused.stderr) == (1, True), refused.stderr
    receiver.how = well
    for words in ((f"p{number}",), ("--all", "--dry-run")):
        silent = run("dlq", "redrive", *words, env=rig.env | WITHOUT_CHANNEL)
        assert (silent.returncode, silent.stdout, silent.stderr.count("\n")) == (2, "", 1), silent.stderr
        assert "nothing was redriven: nodes of notifications call the webhook" in silent.stderr
        assert "set BREW_NOTIFY_CHANNEL=webhook and the other variables of its nodes" in silent.stderr
    assert told(rig) == before
    mended = rig.brewctl("dlq", "redrive", f"p{number}")
    assert mended.returncode == 0, mended.stderr
    assert told(rig) == before + 1
    assert receiver.keys().count(event_id) == 3


def test_what_keeps_failing_is_parked_with_the_reason(rig: Rig, receiver: Receiver, broken: list[str]) -> None:
    rig.wait("both", lambda: {str(found) for (found,) in parked(rig, "event_id")} >= set(broken))
    there = f"(http://127.0.0.1:{receiver.port})"
    reasons = {
        str(event_id): (reason, tries) for event_id, reason, tries in parked(rig, "event_id", "reason", "attempts")
    }
    assert [reasons[event_id] for event_id in broken] == [
        (f"SendError: HTTP 500: no [31mluck {there}", 5),
        (f"SendError: HTTP 307 points to https://elsewhere.example, which is never followed {there}", 5),
    ]
    # More than five where the receiver was away between: such a failure is not counted.
    assert min(receiver.keys().count(event_id) for event_id in broken) >= 5


def test_it_drains_with_the_lines_of_the_log_channel(rig: Rig, node: Node) -> None:
    assert assigned(node) == 1, "whatever the receiver did, no partition moved"
    node.process.send_signal(signal.SIGTERM)
    assert node.ended(within_s=30) == 0, node.log.read_text()
    assert "[notification-1] notification-service stopped. processed=" in node.lines[-1]
    assert " notified=" in node.lines[-1]
    said = node.log.read_text() + "".join(node.lines)
    assert [word for word in ("Traceback", "secret-path", SECRET, NEXT) if word in said] == []
    assert f"notifications={told(rig)}" in rig.brewctl("counts").stdout


def test_killed_between_the_answer_and_the_commit_it_calls_again_with_the_same_key(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]]
) -> None:
    before = told(rig)
    first = rig.start("notification-2", "consume", "notifications", "--session-timeout", "3")
    with rig.connection.transaction():
        rig.connection.execute("LOCK TABLE notifications_log IN SHARE MODE")
        (event_id,) = orders("twice")
        wait_until("an answer", lambda: event_id in receiver.done, timeout_s=60)
        first.kill()
    assert told(rig) == before
    second = rig.start("notification-3", "consume", "notifications", "--session-timeout", "3")
    rig.wait("a row", lambda: told(rig) == before + 1)
    calls = [call for call in receiver.calls if call.key == event_id]
    assert len(calls) == 2
    assert calls[0].body == calls[1].body
    second.process.send_signal(signal.SIGTERM)
    assert second.ended(within_s=30) == 0


def test_a_call_that_hangs_when_it_is_stopped_is_made_again(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]]
) -> None:
    before = told(rig)
    receiver.always(hang)
    first = rig.start("notification-4", "consume", "notifications", "--timeout", "60")
    (event_id,) = orders("hangs at the end")
    wait_until("a call", lambda: receiver.keys().count(event_id) == 1, timeout_s=60)
    first.process.send_signal(signal.SIGTERM)
    first.ended(within_s=30)
    assert "notification-service stopped." in first.lines[-1]
    assert "Traceback" not in first.log.read_text()
    assert told(rig) == before
    receiver.always(answer())
    second = rig.start("notification-5", "consume", "notifications")
    rig.wait("a row", lambda: told(rig) == before + 1)
    assert receiver.keys().count(event_id) == 2
    second.process.send_signal(signal.SIGTERM)
    assert second.ended(within_s=30) == 0


def test_with_the_log_channel_the_same_group_goes_on(
    rig: Rig, receiver: Receiver, orders: Callable[..., list[str]]
) -> None:
    before, calls = told(rig), len(receiver.calls)
    rig.start("notification-6", "consume", "notifications", "--channel", "log")
    orders("logged", "logged too")
    rig.wait("two rows", lambda: told(rig) == before + 2)
    assert len(receiver.calls) == calls
    assert rig.connection.execute("SELECT count(*) FROM notifications_log WHERE channel = 'push'").fetchone() == (2,)


def test_once_a_node_with_the_log_has_started_a_redrive_without_the_channel_writes_rows(
    rig: Rig, receiver: Receiver, broken: list[str]
) -> None:
    waiting = {str(event_id) for (event_id,) in parked(rig, "event_id")}
    before, calls = told(rig), len(receiver.calls)
    assert waiting >= set(broken)
    rig.start("notification-6", "consume", "notifications", "--channel", "log")
    done = run("dlq", "redrive", "--all", env=rig.env | WITHOUT_CHANNEL)
    assert (done.returncode, done.stdout) == (0, f"redriven={len(waiting)} already=0 refused=0\n"), done.stderr
    assert (told(rig), len(receiver.calls)) == (before + len(waiting), calls)
