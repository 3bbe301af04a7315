"""Which processes the dashboard finds, and what it calls a change."""

import os
import socket
from dataclasses import replace
from typing import Any

import psutil
import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import Broker, Partition
from brewctl.lab.top import changes
from brewctl.lab.top.processes import processes_of
from brewctl.lab.top.snapshot import Process, ShownGroup, Snapshot
from brewctl.overview import NodeRow
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State
from tests.unit.top_tools import SNAPSHOT, places, replica, row


def states(known: State | None, rows: list[NodeRow]) -> dict[str, str]:
    found = processes_of(Settings(), known, rows, [], [], {})
    return {process.name: process.state for process in found}


def test_replicas_elsewhere_are_believed_as_long_as_they_speak() -> None:
    rows = [
        row("a", "order"),
        row("b", "order", silent_s=10),
        row("c", "order", silent_s=10, stopped=True),
        row("d", "order", silent_s=301),
    ]
    assert states(None, rows) == {"a": "runs", "b": "silent", "c": "stopped", "postgres": "runs"}


def test_replicas_here_are_looked_up_in_the_process_table() -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    gone = {"host": socket.gethostname(), "pid": 2**22 - 1}
    assert states(None, [row("a", "order", **here), row("b", "order", **gone)]) == {
        "a": "runs",
        "b": "gone",
        "postgres": "runs",
    }


def test_a_row_of_an_earlier_process_says_nothing_of_the_new_one() -> None:
    me = psutil.Process()
    server = Server("inventory-1", me.pid, me.create_time(), 0, "log", role="inventory")
    known = replace(State.without_sandbox(), nodes={"inventory-1": server})
    assert states(known, [row("inventory-1", "inventory", silent_s=100)])["inventory-1"] == "starts"
    assert states(known, [row("inventory-1", "inventory", pid=me.pid)])["inventory-1"] == "runs"


def test_a_broker_that_is_gone_leads_nothing_whatever_kafka_said_last() -> None:
    gone = Server("kafka-1", 2**22 - 1, 0.0, 1, "log")
    known = replace(State.without_sandbox(), kafka_ports=[(1, 2)], servers={"kafka-1": gone})
    said = [Broker(1, "127.0.0.1:1")], [Partition(0, 1, (1,), (1,))]
    broker = next(iter(processes_of(Settings(), known, [], *said, {"kafka": "away"})))
    assert (broker.state, broker.leads, broker.in_sync) == ("gone", (), 0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("runs", "gone", "inventory-1 (4711) gone: killed, or crashed"),
        ("runs", "killed", "inventory-1 (4711) killed: kill -9"),
        ("runs", "paused", "inventory-1 (4711) paused: its partitions stand still"),
        ("paused", "runs", "inventory-1 (4711) resumed"),
        ("runs", "stopped", "inventory-1 (4711) stopped: it drained"),
        ("silent", "runs", "inventory-1 (4711) is back: recovered"),
        ("starts", "runs", None),
        ("runs", "runs", None),
    ],
)
def test_a_change_of_state(before: str, after: str, said: str | None) -> None:
    one, other = (replace(SNAPSHOT, processes=(replica("inventory-1", state=state),)) for state in (before, after))
    assert list(changes.between(one, other)) == ([said] if said else [])


@pytest.mark.parametrize(("role", "state"), [("order", "paused"), ("postgres", "paused"), ("kafka", "gone")])
def test_a_change_that_may_mean_this_or_that(role: str, state: str) -> None:
    one, other = (replace(SNAPSHOT, processes=(Process("it", role, each, 1),)) for each in ("runs", state))
    assert list(changes.between(one, other)) == [f"it (1) {state}"]


def test_a_process_that_takes_the_place_of_a_gone_one() -> None:
    gone = replace(SNAPSHOT, processes=(replica("inventory-1", state="gone"),))
    new = replace(SNAPSHOT, processes=(replica("inventory-1", pid=4712), replica("inventory-2", pid=4713)))
    assert list(changes.between(gone, new)) == [
        "inventory-1 (4712) started: recovered",
        "inventory-2 (4713) started",
    ]


def test_partitions_that_move() -> None:
    def owned(*owners: str) -> Snapshot:
        return replace(SNAPSHOT, groups=(ShownGroup("inventory", "Stable", places(*owners)),))

    assert list(changes.between(Snapshot(0.0, processes=SNAPSHOT.processes), owned("a", "b", "a"))) == [
        "inventory: 0 2 assigned to a",
        "inventory: 1 assigned to b",
    ]
    assert list(changes.between(owned("a", "b", "a"), owned("b", "b", "b"))) == [
        "inventory: 0 2 revoked from a, assigned to b"
    ]
    assert list(changes.between(owned("a", "b", "a"), owned("", "b", ""))) == ["inventory: 0 2 revoked from a"]


KAFKA = Process("kafka-1", "kafka", "runs", 1, in_sync=2, holds=6)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"troubles": {"kafka": "kafka h:1 does not answer"}}, "kafka h:1 does not answer"),
        ({"troubles": {"kafka": "kafka h:1 does not answer"}}, {}, "kafka answers again: recovered"),
        (
            {"processes": (KAFKA,)},
            {"processes": (replace(KAFKA, in_sync=6),)},
            "kafka-1 has all its 6 replicas in sync: recovered",
        ),
    ],
)
def test_a_server_goes_and_comes_back(before: dict[str, Any], after: dict[str, Any], said: str) -> None:
    assert list(changes.between(replace(SNAPSHOT, **before), replace(SNAPSHOT, **after))) == [said]
