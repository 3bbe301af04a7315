"""Heartbeats: a poll sends what is due by itself, and the thread for the time between polls waits until one is due."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.coordinator import base
from kafka.coordinator.heartbeat import Heartbeat
from kafka.future import Future

from brewctl.delivery.broker.kafka_python.heartbeats import Coordinator, HeartbeatThread

STABLE = base.MemberState.STABLE


class Member(Coordinator):
    """One without a client, whose heartbeats are counted and answered when the test says so."""

    def __init__(self) -> None:
        lock = threading.RLock()
        self._client = SimpleNamespace(_lock=lock, poll=lambda **_: None)
        self._lock = threading.Condition(lock)
        self.state = STABLE
        self.group_id = "inventory"
        self.heartbeat = Heartbeat(heartbeat_interval_ms=1000, session_timeout_ms=15000, max_poll_interval_ms=300000)
        self.heartbeat.reset_timeouts()
        self.config = {"retry_backoff_ms": 1}
        self.sent: list[Future] = []
        self.dead: list[str] = []
        self._heartbeat_thread = HeartbeatThread(self)
        self._heartbeat_thread.enabled = True

    def __del__(self) -> None:
        pass

    def coordinator_unknown(self) -> bool:
        return bool(self.dead)

    def coordinator_dead(self, error: object) -> None:
        self.dead.append(str(error))

    def _send_heartbeat_request(self) -> Future:
        self.sent.append(Future())
        return self.sent[-1]

    def make_due(self) -> None:
        self.heartbeat.last_reset -= 1


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Any:
    waits: list[float | None] = []
    made: Any = Member()
    monkeypatch.setattr(made._lock, "wait", waits.append, raising=False)
    made.waits = waits
    return made


def test_a_poll_sends_the_heartbeat_that_is_due_and_only_once(member: Any) -> None:
    member.poll_heartbeat()
    assert not member.sent
    member.make_due()
    member.poll_heartbeat()
    member.poll_heartbeat()
    assert len(member.sent) == 1


def test_a_heartbeat_that_failed_is_sent_again_by_a_later_poll(member: Any) -> None:
    member.make_due()
    member.poll_heartbeat()
    member.sent[0].failure(base.Errors.NodeNotReadyError())
    member.heartbeat.last_send -= 1
    member.poll_heartbeat()
    assert len(member.sent) == 2


def test_a_session_that_is_over_makes_a_poll_look_for_the_coordinator_again(member: Any) -> None:
    member.heartbeat.last_reset -= 16
    member.poll_heartbeat()
    assert member.dead == ["Heartbeat session expired"]
    assert not member.sent


def test_the_thread_waits_until_the_next_one_is_due(member: Any) -> None:
    member._heartbeat_thread._run_once()
    (wait_s,) = member.waits
    assert wait_s > 0.9


def test_the_thread_sends_one_that_no_poll_has_sent(member: Any) -> None:
    member.make_due()
    member._heartbeat_thread._run_once()
    assert len(member.sent) == 1
    assert not member.waits


def test_the_thread_looks_often_while_an_answer_is_outstanding(member: Any) -> None:
    member.make_due()
    member._heartbeat_thread._run_once()
    member._heartbeat_thread._run_once()
    assert member.waits == [0.001]
    member.sent[0].success(None)
    member._heartbeat_thread._run_once()
    assert member.waits[1] > 0.9


def test_the_thread_wakes_in_time_to_leave_a_group_that_nobody_polls_for(member: Any) -> None:
    member.heartbeat.last_poll -= 299.9
    member._heartbeat_thread._run_once()
    assert 0 < member.waits[0] < 0.2


def test_a_thread_that_is_closed_waits_no_more(member: Any) -> None:
    member._heartbeat_thread.closed = True
    member._heartbeat_thread._run_once()
    assert not member.waits
