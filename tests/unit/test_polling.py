"""A poll of the client library as this process uses it: nothing is asked, waited for or counted twice."""

import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from kafka.metrics.stats.sensor import Sensor

from brewctl.delivery.broker.kafka_python import library_patches
from brewctl.delivery.broker.kafka_python.connection_settings import Selector
from brewctl.delivery.broker.kafka_python.consumer import _Client
from brewctl.delivery.broker.kafka_python.polling import PollingConsumer


class Fetcher:
    """Asks two brokers; the answer of one of them is there as soon as anybody looks."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self._completed_fetches: list[object] = []
        self._next_partition_records = None
        self.stable: dict[str, int] = {}
        self.answers: list[dict[str, list[int]]] = []

    def send_fetches(self) -> list[object]:
        self.log.append("ask")
        return [object()]

    def fetched_records(self, _most: int, *, update_offsets: bool) -> tuple[dict[str, list[int]], bool]:
        assert update_offsets
        return (self.answers.pop(), False) if self.answers else ({}, False)


@dataclass(eq=False)
class Connection:
    """One to a broker, which takes all of a request, or a part."""

    _sock: str | None
    all_at_once: bool

    def send_pending_requests_v2(self) -> bool:
        return self.all_at_once


class Client(_Client):
    """One without connections of its own."""

    def __init__(self, connections: set[Connection], selector: object) -> None:
        self._sending = connections
        self._selector = selector

    def __del__(self) -> None:
        pass


def consumer(log: list[str]) -> Any:
    made = PollingConsumer.__new__(PollingConsumer)
    fetcher = Fetcher(log)

    def poll(*, timeout_ms: float) -> None:
        log.append(f"look for {timeout_ms:g} ms")
        fetcher.answers.append({"partition": [1]})

    made._coordinator = SimpleNamespace(poll=lambda: None, time_to_next_poll=lambda: 1.0, need_rejoin=lambda: False)
    place = SimpleNamespace(has_valid_position=True, position=5)
    made._subscription = SimpleNamespace(has_all_fetch_positions=lambda: True, assignment={"partition": place})
    made._stop = threading.Event()
    made._client = SimpleNamespace(poll=poll)
    made._fetcher = fetcher
    return made


def test_a_poll_returns_with_the_first_answer_and_waits_for_no_other() -> None:
    """The library looks first for 0 ms, leaves what it finds there, and waits for the next answer."""
    log: list[str] = []
    assert consumer(log)._poll_once(200, 10) == {"partition": [1]}
    assert log == ["ask", "look for 200 ms"]


def test_what_is_in_memory_is_returned_at_once_and_the_next_is_asked_for() -> None:
    log: list[str] = []
    one = consumer(log)
    one._fetcher.answers.append({"partition": [0]})
    one._fetcher.stable["partition"] = 6  # more wait at the broker
    assert one._poll_once(200, 10) == {"partition": [0]}
    assert log == ["ask", "look for 0 ms"]


def test_where_nothing_waits_no_broker_is_asked_before_the_reader_has_rested() -> None:
    """One that is asked answers with the first record that comes meanwhile, and that alone."""
    log: list[str] = []
    one = consumer(log)
    one._fetcher.answers.append({"partition": [0]})
    one._fetcher.stable["partition"] = 5
    assert one._poll_once(200, 10) == {"partition": [0]}
    assert log == []


def test_a_stop_ends_a_poll_that_finds_nothing() -> None:
    log: list[str] = []
    one = consumer(log)
    one._client.poll = lambda **_: one._stop.set()
    assert one.poll(timeout_ms=2_000, max_records=10) == {}
    assert log == ["ask"], "it went on until its time was up"


def test_a_request_is_sent_at_once_and_the_rest_of_a_long_one_when_its_socket_takes_it() -> None:
    watched: list[str] = []

    def unknown(_socket: str) -> None:
        raise KeyError

    selector = SimpleNamespace(get_key=unknown, register=lambda socket, *_: watched.append(socket))
    client = Client({Connection("short", all_at_once=True), Connection("long", all_at_once=False)}, selector)
    client._register_send_sockets()
    assert watched == ["long"]
    assert client._sending == set()


def test_a_connection_that_was_closed_as_it_sent_is_watched_no_more() -> None:
    client = Client({Connection(None, all_at_once=False)}, Selector())
    client._register_send_sockets()
    assert client._sending == set()


def test_no_metric_is_counted() -> None:
    assert library_patches
    assert Sensor.record.__module__ == library_patches.__name__
    assert Sensor.record(object(), 1.0) is None
