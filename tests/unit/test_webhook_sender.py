"""One call of a webhook's receiver: what is sent, and what each answer means. The receiver is real, and misbehaves."""

import base64
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brewctl import Later, Reject
from brewctl.lifecycle import wait_until
from brewctl.roles.webhook import receivers
from brewctl.roles.webhook.circuit import Circuit
from brewctl.roles.webhook.sender import Sender, SendError
from tests.webhook_receiver import (
    Do,
    Receiver,
    answer,
    endless,
    garbage,
    hang,
    lie,
    receiving,
    reset,
    trickle,
    trickle_headers,
)

SECRET, NEXT = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
BODY = '{"id":"e1","data":{"customer_id":"alice"}}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def place(url: str, *, secret: str = SECRET, timeout_s: float = 5.0, **more: str) -> receivers.Receiver:
    named = {receivers.URL: url, receivers.SECRET: secret, receivers.TIMEOUT: str(timeout_s)}
    return receivers.from_environment({**named, **more})


@pytest.fixture
def sender(receiver: Receiver) -> Iterator[Sender]:
    """A sender that gives up after half a second; its circuit opens at the 100th event."""
    with Sender(place(receiver.url, timeout_s=0.5), concurrency=4, circuit=Circuit(most_in_a_row=100)) as sender:
        yield sender


def test_what_is_sent(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Sender(place(receiver.url), concurrency=4) as sender:
        for _ in range(3):
            sender.send("e1", BODY, {"traceparent": trace})
    call, *_ = receiver.calls
    assert (call.method, call.path, call.body) == ("POST", "/hooks/secret-path", BODY)
    wanted = {
        "content-type": "application/json",
        "idempotency-key": "e1",
        "webhook-id": "e1",
        "traceparent": trace,
        "host": f"127.0.0.1:{receiver.port}",
    }
    assert wanted.items() <= call.headers.items()
    assert call.headers["user-agent"].startswith("brewctl/")
    for each in receiver.calls:
        each.verify(SECRET)
    assert (len(receiver.calls), receiver.connections) == (3, 1), "a connection is used again"
    assert "secret-path" not in caplog.text


def test_unsigned_there_is_no_signature(receiver: Receiver) -> None:
    with Sender(place(receiver.url, secret="", BREW_WEBHOOK_UNSIGNED="1"), concurrency=1) as sender:
        sender.send("e1", BODY)
    assert {"webhook-signature", "webhook-timestamp"}.isdisjoint(receiver.calls[0].headers)


def test_a_secret_is_exchanged_without_a_restart(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    there = place(receiver.url, secret="", BREW_WEBHOOK_SECRET_FILE=str(file))
    with Sender(there, concurrency=1) as sender:
        sender.send("e1", BODY)
        file.write_text(f"whsec_{NEXT} {SECRET}\n")
        sender.send("e2", BODY)
        file.write_text(NEXT)
        sender.send("e3", BODY)
        first, both, last = receiver.calls
        for call, secrets in ((first, [SECRET]), (both, [SECRET, NEXT]), (last, [NEXT])):
            assert len(call.headers["webhook-signature"].split()) == len(secrets)
            for secret in secrets:
                call.verify(secret)
        file.unlink()
        with pytest.raises(Later, match="can't be read"):
            sender.send("e4", BODY)
        file.write_text(NEXT)
        sender.send("e4", BODY)
    assert receiver.keys() == ["e1", "e2", "e3", "e4"], "nothing is sent unsigned"


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (answer(500, "oh\x1b[31m no\r\n"), r"^HTTP 500: oh \[31m no \(http://127.0.0.1:"),
        (answer(503), "HTTP 503"),
        (answer(408), "HTTP 408"),
        (answer(425), "HTTP 425"),
        (
            answer(302, location="https://elsewhere.example/p?token=1"),
            "302 points to https://elsewhere.example, which is never",
        ),
        (answer(308, location="/other"), "308 points to http://127.0.0.1:"),
        (answer(301, location="http://x:port/"), "301 points to what is no URL"),
        (answer(304), "304 points to nowhere"),
        (hang, "no whole answer within 0.5 s"),
        (trickle, "no whole answer within 0.5 s"),
        (trickle_headers, "no whole answer within 0.5 s"),
        (reset, "no whole answer: "),
        (garbage, "no whole answer: "),
        (lie, "no whole answer: "),
    ],
)
def test_what_may_succeed_another_time(receiver: Receiver, sender: Sender, do: Do, said: str) -> None:
    receiver.always(do)
    with pytest.raises(SendError, match=said):
        sender.send("e1", BODY)
    receiver.always(answer(204))
    sender.send("e1", BODY)
    assert receiver.keys() == ["e1", "e1"]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_what_is_refused_for_ever(receiver: Receiver, sender: Sender, status: int) -> None:
    receiver.always(answer(status, "no such\n\tcustomer " + "x" * 1000))
    with pytest.raises(Reject) as refused:
        sender.send("e1", BODY)
    assert str(refused.value).startswith(f"HTTP {status}: no such customer xxx")
    assert len(str(refused.value)) < 260


@pytest.mark.parametrize(
    ("do", "seconds"),
    [
        (answer(429), 1),
        (answer(429, retry_after="7"), 7),
        (answer(503, retry_after="7"), 7),
        (answer(503, retry_after="0"), 1),
        (answer(503, retry_after="Fri, 01 Jan 2100 00:00:00 GMT"), 300),
        (answer(503, retry_after="Fri, 01 Jan 1999 00:00:00 GMT"), 1),
        (answer(429, retry_after="soon"), 1),
        (answer(429, retry_after="9" * 400), 300),
    ],
)
def test_a_receiver_that_asks_for_time_gets_it_within_bounds(
    receiver: Receiver, sender: Sender, do: Do, seconds: float
) -> None:
    receiver.always(do)
    with pytest.raises(Later) as later:
        sender.send("e1", BODY)
    assert later.value.seconds == seconds
    assert "HTTP" in later.value.why


def test_an_endless_answer_is_not_read_to_its_end(receiver: Receiver) -> None:
    receiver.always(endless)
    with Sender(place(receiver.url), concurrency=1) as sender:
        sender.send("e1", BODY)
    assert receiver.keys() == ["e1"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("url", ["http://localhost:{port}/", "https://no-such-host.invalid/"])
def test_who_can_not_be_reached_is_no_fault_of_the_event(url: str) -> None:
    circuit = Circuit()
    with (
        Sender(place(url.format(port=free_port()), timeout_s=10), concurrency=1, circuit=circuit) as sender,
        pytest.raises(Later, match="can't be reached: "),
    ):
        sender.send("e1", BODY)
    assert circuit.enter() > 0, "and nobody else is sent there for now"


def test_a_receiver_whose_certificate_is_nobodys_gets_nothing(receiver: Receiver) -> None:
    url = receiver.url.replace("http:", "https:")
    with Sender(place(url), concurrency=1) as sender, pytest.raises(Later, match="can't be reached"):
        sender.send("e1", BODY)
    assert receiver.calls == []


def in_threads(count: int, call: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_calls_run_beside_each_other_and_those_that_hang_end_with_the_sender(receiver: Receiver) -> None:
    receiver.how = lambda call: answer() if call.key == "quick" else hang
    ends: list[Later] = []
    with Sender(place(receiver.url, timeout_s=60), concurrency=4) as own:

        def call(number: int) -> None:
            try:
                own.send(f"slow-{number}", BODY)
            except Later as error:
                ends.append(error)

        threads = in_threads(3, call)
        wait_until("the slow ones", lambda: receiver.at_once == 3, timeout_s=30)
        own.send("quick", BODY)
        assert receiver.at_once == 3
    for thread in threads:
        thread.join()
    assert [error.why for error in ends] == ["the node stops"] * 3


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_circuit_opens_after_events_in_a_row_and_not_after_one_that_fails_again() -> None:
    clock = Clock()
    circuit = Circuit(most_in_a_row=3, clock=clock)
    assert [circuit.failed("a") for _ in range(10)] == [0] * 10
    assert circuit.failed("b") == 0
    circuit.succeeded()
    assert (circuit.failed("b"), circuit.failed("c")) == (0, 0)
    seconds = circuit.failed("d")
    assert 0.75 <= seconds <= 1.25
    assert circuit.enter() == pytest.approx(seconds)
    clock.now += seconds + 0.1
    assert circuit.enter() == 0
    assert circuit.enter() == 1, "one call alone finds out"
    assert 1.5 <= circuit.failed("e") <= 2.5, "twice as long"
    clock.now += 3
    assert circuit.enter() == 0
    circuit.abandoned()
    assert circuit.enter() == 0, "one that was cut off is followed by another"
    assert circuit.succeeded()
    assert [circuit.enter() for _ in range(3)] == [0, 0, 0]
    assert not circuit.succeeded()


def test_those_who_wait_for_the_circuit_go_on_as_soon_as_one_call_succeeds() -> None:
    clock, gone = Clock(), []
    circuit = Circuit(clock=clock)
    circuit.failed("a", away=True)
    clock.now += 10
    assert circuit.enter() == 0
    waiting = in_threads(3, lambda number: gone.append((number, circuit.enter(patience_s=600))))
    circuit.succeeded()
    for thread in waiting:
        thread.join()
    assert sorted(gone) == [(0, 0), (1, 0), (2, 0)]


def test_the_circuit_opens_no_longer_than_half_a_minute_unless_it_was_asked_to() -> None:
    clock = Clock()
    circuit = Circuit(clock=clock)
    longest = 0.0
    for number in range(20):
        longest = circuit.failed(str(number), away=True)
        clock.now += longest
        assert circuit.enter() == 0
    assert 20 <= longest <= 40
    assert circuit.failed("x", away=True, pause_s=200) == 200


def test_a_call_that_began_before_the_circuit_opened_opens_it_no_longer() -> None:
    circuit = Circuit(clock=Clock())
    first = circuit.failed("a", away=True)
    assert circuit.failed("b", away=True) == pytest.approx(first)


def test_a_receiver_that_fails_everybody_is_left_alone_until_one_call_succeeds(receiver: Receiver) -> None:
    receiver.always(answer(500))
    clock = Clock()
    with Sender(place(receiver.url), concurrency=4, circuit=Circuit(most_in_a_row=3, clock=clock)) as sender:
        for number in range(2):
            with pytest.raises(SendError):
                sender.send(f"e{number}", BODY)
        for number in range(2, 6):
            with pytest.raises(Later, match=r"HTTP 500|no calls for a while"):
                sender.send(f"e{number}", BODY)
        assert receiver.keys() == ["e0", "e1", "e2"], "while it is open nobody is called, and nothing is counted"
        clock.now += 5
        with pytest.raises(Later, match="HTTP 500"):
            sender.send("e3", BODY)
        clock.now += 10
        receiver.always(answer())
        sender.send("e3", BODY)
        sender.send("e4", BODY)


@pytest.mark.parametrize("status", [401, 404])
def test_one_who_refuses_everybody_has_no_event_refused(receiver: Receiver, status: int) -> None:
    """A wrong URL or a wrong secret: parked for ever would be all that comes."""
    receiver.always(answer(status))
    with Sender(place(receiver.url), concurrency=4, circuit=Circuit(most_in_a_row=3)) as sender:
        for number in range(2):
            with pytest.raises(Reject):
                sender.send(f"e{number}", BODY)
        with pytest.raises(Later, match=f"HTTP {status}"):
            sender.send("e2", BODY)


def test_one_customer_alone_opens_no_circuit(receiver: Receiver) -> None:
    receiver.how = lambda call: answer(500) if call.key.startswith("e") else answer()
    with Sender(place(receiver.url), concurrency=4, circuit=Circuit(most_in_a_row=3)) as sender:
        for number in range(10):
            with pytest.raises(SendError):
                sender.send(f"e{number}", BODY, of="alice")
        sender.send("another", BODY, of="bob")


def test_a_host_that_is_not_known_is_told_of_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with Sender(place("https://no-such-host.invalid/secret-path"), concurrency=1):
        wait_until("a warning", lambda: "leads nowhere yet" in caplog.text, timeout_s=60)
    assert "https://no-such-host.invalid: the host's name" in caplog.text
    assert "secret-path" not in caplog.text
