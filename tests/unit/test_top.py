"""The dashboard: what its parts show, what it calls a change, and its keys, by Textual's pilot."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from brewctl.config import DEFAULT_DOWNSTREAMS, Settings
from brewctl.delivery.broker import Broker, Partition
from brewctl.errors import BrewError
from brewctl.lab.load.load import CallOutcome, LoadCall
from brewctl.lab.play.nodes import Role
from brewctl.lab.top import changes, controls, panels
from brewctl.lab.top.app import Top
from brewctl.lab.top.controls import Controls, LoadControl
from brewctl.lab.top.keys import adding, line
from brewctl.lab.top.observer import Observer
from brewctl.lab.top.processes import processes_of
from brewctl.lab.top.rates import Rates
from brewctl.lab.top.snapshot import Counters, GroupPartition, Process, ShownGroup, Snapshot
from brewctl.overview import NodeRow
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State

EFFECTS = {"reservations": 1200, "notifications": 1210}
COUNTERS = Counters(1234, 5, 1229, EFFECTS, set_aside=0, oldest_s=2.4)
ADDS = adding(Settings())


def row(name: str, role: str, **said: Any) -> NodeRow:
    known = {"host": "elsewhere", "pid": 4711, "address": "", "stopped": False, "silent_s": 0.4, "started_s": 0.0}
    counted = {"processed": 10, "effects": 9, "skipped": 1, "dead": 0}
    return NodeRow(name=name, role=role, **{**known, **counted, **said})


def replica(name: str, role: str = "inventory", state: str = "runs", **more: Any) -> Process:
    known = {"pid": 4711, "ours": True, "row": row(name, role)}
    return Process(name, role, state, **{**known, **more})


def places(*owners: str, lag: int = 0) -> tuple[GroupPartition, ...]:
    return tuple(GroupPartition(number, owner, lag, None) for number, owner in enumerate(owners))


SNAPSHOT = Snapshot(
    at_s=100.0,
    counters=COUNTERS,
    dead_letters=0,
    processes=(
        replica("order-1", "order", row=row("order-1", "order", address="127.0.0.1:50081")),
        replica("inventory-1"),
        replica("inventory-2"),
        Process("kafka-1", "kafka", "runs", 1, ours=True, place="127.0.0.1:1", leads=(0, 3), in_sync=6, holds=6),
        Process("postgres", "postgres", "runs", 2, ours=True, place="127.0.0.1:2/brew"),
    ),
    groups=(ShownGroup("inventory", "Stable", places(*["inventory-1", "inventory-2"] * 3)),),
)


# What the parts show


def lines_of_counters(snapshot: Snapshot, rates: Rates | None = None) -> dict[str, str]:
    lines = panels.counters(snapshot, rates or Rates(), 80, most=5).plain.splitlines()
    assert all(len(line) <= 80 for line in lines)
    return {line[:14].strip(): line[14:] for line in lines}


def test_counters_with_what_they_were() -> None:
    rates = Rates()
    rates.add(replace(SNAPSHOT, at_s=98.0, counters=replace(COUNTERS, orders=1214)))
    rates.add(SNAPSHOT)
    lines = lines_of_counters(SNAPSHOT, rates)
    assert lines["orders"].split()[:2] == ["1,234", "10/s"]
    assert lines["unpublished"].split()[:4] == ["5", "2.4", "s", "old"]
    assert lines["orders"].endswith("█")
    assert lines["dead letters"].split()[:2] == ["0", "0/s"]
    assert lines["dead letters"].endswith("▁")


def test_an_estimate_is_marked() -> None:
    lines = lines_of_counters(replace(SNAPSHOT, counters=replace(COUNTERS, estimated=frozenset(EFFECTS))))
    assert lines["reservations"].split()[0] == "~1,200"
    assert lines["unpublished"].split()[0] == "5"


def test_what_needs_somebody_names_the_command() -> None:
    troubled = replace(SNAPSHOT, counters=replace(COUNTERS, set_aside=2), dead_letters=3)
    lines = lines_of_counters(troubled)
    assert "2 set aside: see `brewctl outbox list`" in lines["unpublished"]
    assert "see `brewctl dlq list`" in lines["dead letters"]


def test_dead_letters_have_a_rate_whatever_postgres_says() -> None:
    rates, away = Rates(), {"postgres": "postgres h:1/b refused"}
    rates.add(replace(SNAPSHOT, at_s=99.0, troubles=away))
    rates.add(replace(SNAPSHOT, dead_letters=3, troubles=away))
    assert rates.now("dead letters") == 3
    assert rates.history("orders") == []


def test_counters_of_a_server_that_was_never_there() -> None:
    lines = panels.counters(Snapshot(0.0, troubles={"postgres": "postgres refused"}), Rates(), 80, most=5).plain
    assert "orders                   -" in lines
    assert "✗ out of date: postgres refused" in lines


def test_a_table_that_was_emptied_did_not_grow() -> None:
    rates = Rates()
    rates.add(SNAPSHOT)
    rates.add(replace(SNAPSHOT, at_s=101.0, counters=Counters(0, 0, 0, {}, 0, None)))
    assert rates.now("orders") == 0


def test_the_map_of_partitions_tells_owners_without_colours() -> None:
    drawn = panels.partitions(
        SNAPSHOT, {"inventory-1": "cyan", "inventory-2": "magenta"}, 80, most=5
    ).plain.splitlines()
    assert drawn[0].split() == ["partition", *"012345"]
    assert drawn[1].split() == ["inventory", *["1", "+0", "2", "+0"] * 3]


def test_the_map_says_that_it_has_not_room_for_all() -> None:
    wide = replace(SNAPSHOT, groups=(ShownGroup("inventory", "Stable", places(*["inventory-1"] * 12)),))
    narrow, wider = (panels.partitions(wide, {}, width, most=5).plain.splitlines() for width in (80, 150))
    assert narrow[0].split() == ["first", "6", "of", "12", *"012345"]
    assert wider[0].split() == ["partition", *map(str, range(12))]
    assert max(map(len, narrow)) <= 80


def test_the_map_shows_what_stands_still() -> None:
    gone = replace(SNAPSHOT, processes=(replica("inventory-1", state="gone"),))
    owned = (
        GroupPartition(0, "inventory-1", 123, 12.2),
        GroupPartition(1, "inventory-1", 12_345, 720),
        GroupPartition(2, "", 3, 1.0),
    )
    drawn = panels.partitions(
        replace(gone, groups=(ShownGroup("inventory", "PreparingRebalance", owned),)), {}, 80, most=5
    ).plain
    assert drawn.splitlines()[1].split() == ["inventory…", "1✗+123", "12s", "1✗+12k", "12m", "-", "+3"]


def test_each_process_says_what_it_does() -> None:
    said = {process.name: panels.process(process, "", (16, 8, 9, 50))[-1].plain for process in SNAPSHOT.processes}
    assert said["order-1"] == "port 50081, 9 published, seen 0.4 s ago"
    assert said["inventory-1"] == "10 processed, 1 skipped, seen 0.4 s ago"
    assert said["kafka-1"] == "leads 0 3, in sync 6/6, port 1"
    assert said["postgres"] == "127.0.0.1:2/brew"


@pytest.mark.parametrize(("name", "begins"), [("host-17", "notifications, 10"), ("notification-1", "10 processed")])
def test_a_role_is_named_where_the_name_does_not_tell_it(name: str, begins: str) -> None:
    assert panels.process(replica(name, "notifications"), "", (16, 8, 9, 50))[-1].plain.startswith(begins)


# Who runs


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


# What happened


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


def test_a_server_that_goes_and_comes_back() -> None:
    away = replace(SNAPSHOT, troubles={"kafka": "kafka h:1 does not answer"})
    assert list(changes.between(SNAPSHOT, away)) == ["kafka h:1 does not answer"]
    assert list(changes.between(away, SNAPSHOT)) == ["kafka answers again: recovered"]


def test_replicas_that_are_in_sync_again() -> None:
    behind = replace(SNAPSHOT, processes=(Process("kafka-1", "kafka", "runs", 1, in_sync=2, holds=6),))
    caught_up = replace(SNAPSHOT, processes=(Process("kafka-1", "kafka", "runs", 1, in_sync=6, holds=6),))
    assert list(changes.between(behind, caught_up)) == ["kafka-1 has all its 6 replicas in sync: recovered"]


# Its keys


class Scripted:
    """Stands for the observer: servers that fail on cue can't be had in a unit test."""

    def __init__(self) -> None:
        self.snapshot = SNAPSHOT

    def look(self) -> Snapshot:
        return replace(self.snapshot, at_s=time.monotonic())


class Recorded:
    """Stands for the controls."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []
        self.may_restart = threading.Event()

    def start(self, role: Role) -> None:
        self.done.append(("start", role.name))

    def send(self, process: Process, number: signal.Signals) -> None:
        self.done.append((number.name, process.name))

    def restart(self, process: Process) -> None:
        self.may_restart.wait(10)
        if process.role == "kafka":
            raise KeyError(process.name)
        raise BrewError(f"{process.name} can't be restarted", hint="try again")


def play(
    script: Callable[[Pilot[None], Scripted, Recorded], Awaitable[None]],
    *,
    controlled: bool = True,
    size: tuple[int, int] = (80, 24),
) -> Recorded:
    """Run the app with a pilot."""
    observer, controls = Scripted(), Recorded()
    app = Top(cast("Observer", observer), cast("Controls", controls) if controlled else None, where="here", adds=ADDS)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await script(pilot, observer, controls)

    asyncio.run(run())
    return controls


def screen(pilot: Pilot[None]) -> str:
    """All that the parts show."""
    table = pilot.app.query_one(DataTable)
    rows = (" ".join(str(cell) for cell in table.get_row_at(number)) for number in range(table.row_count))
    return "\n".join([*(str(part.render()) for part in pilot.app.query(Static) if part.display), *rows])


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, screen(pilot)
        await pilot.pause(0.02)


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_everything_is_there(size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[None], _observer: Scripted, _controls: Recorded) -> None:
        await pilot.pause()
        shown = screen(pilot)
        for part in ("orders", "dead letters", "partition", "inventory", "kill -9", "here"):
            assert part in shown
        assert pilot.app.query_one(DataTable).row_count == 5
        lowest = max(part.region.bottom for part in pilot.app.query("Static, DataTable") if part.display)
        assert lowest == size[1]
        assert pilot.app.query_one("#events").region.height >= 3

    play(script, size=size)


def test_keys_act_on_what_is_selected() -> None:
    async def script(pilot: Pilot[None], observer: Scripted, controls: Recorded) -> None:
        await pilot.press("down", "k", "t", "p")
        paused = tuple(replace(each, state="paused") for each in SNAPSHOT.processes)
        observer.snapshot = replace(SNAPSHOT, processes=paused)
        await until(pilot, lambda: "paused" in screen(pilot))
        await pilot.press("p", "o", "i", "n")
        await until(pilot, lambda: len(controls.done) == 7)
        await pilot.press("r", "r")
        assert "inventory-1: the key before is still at work" in screen(pilot)
        controls.may_restart.set()
        await until(pilot, lambda: "inventory-1 can't be restarted: try again" in screen(pilot))

    done = play(script).done
    assert done[:4] == [(number, "inventory-1") for number in ("SIGKILL", "SIGTERM", "SIGSTOP", "SIGCONT")]
    assert set(done[4:]) == {
        ("start", "order"),
        ("start", "inventory"),
        ("start", "notifications"),
    }


def test_who_was_killed_by_a_key_is_known_to_be_killed_until_it_is_back() -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        one, *others = SNAPSHOT.processes
        await pilot.press("k")
        observer.snapshot = replace(SNAPSHOT, processes=tuple(replace(each, state="gone") for each in (one, *others)))
        await until(pilot, lambda: "order-1 (4711) killed: kill -9" in screen(pilot))
        assert "✗ killed" in screen(pilot)
        assert "inventory-1 (4711) gone" in screen(pilot)
        observer.snapshot = replace(SNAPSHOT, processes=(replace(one, pid=4712), *others))
        await until(pilot, lambda: "order-1 (4712) started: recovered" in screen(pilot))
        observer.snapshot = replace(SNAPSHOT, processes=(replace(one, pid=4712, state="gone"), *others))
        await until(pilot, lambda: "order-1 (4712) gone: killed, or crashed" in screen(pilot))

    play(script)


LOYALTY = """
from brewctl import Event, OrderCreated, downstream

@downstream("loyalty")
def points(event: Event[OrderCreated], tx) -> None: ...

@downstream("a-group-with-a-long-name-2")
def long(event: Event[OrderCreated], tx) -> None: ...

@downstream("oil")
def oil(event: Event[OrderCreated], tx) -> None: ...

@downstream("99")
def number(event: Event[OrderCreated], tx) -> None: ...
"""


def with_effects(**effects: int | None) -> Snapshot:
    groups = tuple(ShownGroup(name, "Stable", places(*[f"{name}-1"] * 6)) for name in effects)
    counters = replace(COUNTERS, effects=effects)
    return replace(SNAPSHOT, counters=counters, groups=groups, downstreams=tuple(effects))


def test_each_downstream_has_its_counter_and_its_rate() -> None:
    rates = Rates()
    rates.add(replace(with_effects(loyalty=10), at_s=98.0))
    rates.add(with_effects(loyalty=50))
    lines = lines_of_counters(with_effects(loyalty=50), rates)
    assert lines["loyalty"].split()[:2] == ["50", "20/s"]
    assert "reservations" not in lines


def test_one_that_can_not_be_counted_says_so_beside_the_others() -> None:
    lines = lines_of_counters(with_effects(loyalty=None, reservations=7))
    assert lines["loyalty"].split()[:3] == ["-", "can't", "be"]
    assert lines["reservations"].split()[0] == "7"


def test_a_long_name_keeps_the_columns_in_their_places() -> None:
    long = "a-group-with-a-long-name-"
    snapshot = with_effects(**{f"{long}1": 5, f"{long}2": 6})
    drawn = panels.counters(snapshot, Rates(), 80, most=5).plain.splitlines()
    assert [row[:26].split() for row in drawn[3:5]] == [["a-grou…name-1", "5"], ["a-grou…name-2", "6"]]
    head, first, _ = panels.partitions(snapshot, {}, 80, most=5).plain.splitlines()
    assert head.index("0") + 1 == first.index("1 +0")


def test_more_downstreams_than_there_is_room_for() -> None:
    snapshot = with_effects(**{f"d{number}": number for number in range(8)})
    counters = panels.counters(snapshot, Rates(), 80, most=5).plain.splitlines()
    groups = panels.partitions(snapshot, {}, 80, most=5).plain.splitlines()
    assert [line.split()[0] for line in counters[3:]] == ["d0", "d1", "d2", "d3", "…", "dead"]
    assert counters[7] == "… 4 more downstreams: make the window higher"
    assert [line.split()[0] for line in groups] == ["partition", "d0", "d1", "d2", "d3", "…"]


@pytest.mark.parametrize("number", [1, 3, 5, 9])
def test_any_number_of_downstreams_fits_into_80_by_24(number: int) -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        observer.snapshot = with_effects(**{f"d{each}": each for each in range(number)})
        await until(pilot, lambda: "d0" in screen(pilot))
        await pilot.pause()
        assert max(part.region.bottom for part in pilot.app.query("Static, DataTable") if part.display) == 24
        assert pilot.app.query_one("#keys").region.bottom == 24
        assert pilot.app.query_one("#events").region.height >= 1
        assert pilot.app.query_one(DataTable).region.height >= 4

    play(script)


def test_each_downstream_has_a_key_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keyed.py").write_text(LOYALTY)
    monkeypatch.chdir(tmp_path)
    own = tuple(f"keyed:{name}" for name in ("points", "long", "oil", "number"))
    adds = adding(Settings(downstreams=(*DEFAULT_DOWNSTREAMS, *own)))
    names = ["order", "inventory", "notifications", *own]
    # l, o, t, p, i are taken: of loyalty y is left, of oil nothing.
    assert {key: role.name for key, role in adds.items()} == dict(zip("oinya12", names, strict=True))
    assert adds["y"].stem == "loyalty"
    assert line(ADDS) == "q quit  l load  +- rate  o/i/n add  t term  k kill -9  p pause  r restart  e log"
    assert "o/i/n/y/a/1/2 add" in line(adds)
    assert len(line(adds)) <= 80


def test_what_nobody_foresaw_ends_the_screen() -> None:
    failures: list[Exception | None] = []

    async def look_fails(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        observer.snapshot = cast("Snapshot", None)
        await until(pilot, lambda: not pilot.app.is_running)
        failures.append(cast("Top", pilot.app).failure)
        assert pilot.app.return_code == 1

    async def key_fails(pilot: Pilot[None], _observer: Scripted, controls: Recorded) -> None:
        controls.done = cast("list[tuple[str, ...]]", None)
        await pilot.press("k")
        await until(pilot, lambda: not pilot.app.is_running)
        failures.append(cast("Top", pilot.app).failure)

    async def job_fails(pilot: Pilot[None], _observer: Scripted, controls: Recorded) -> None:
        controls.may_restart.set()
        await pilot.press(*["down"] * 3, "r")
        await until(pilot, lambda: not pilot.app.is_running)
        failures.append(cast("Top", pilot.app).failure)

    for script in (look_fails, key_fails, job_fails):
        play(script)
    assert [type(failure) for failure in failures] == [TypeError, AttributeError, KeyError]


def test_quitting_waits_for_what_a_key_began_and_says_so() -> None:
    waited: list[str] = []

    async def script(pilot: Pilot[None], _observer: Scripted, controls: Recorded) -> None:
        await pilot.press("r")
        lines = cast("Top", pilot.app).finish()
        waited.append(next(lines))
        controls.may_restart.set()
        waited.extend(lines)

    play(script)
    assert waited == ["waiting for order-1"]


def test_the_log_can_have_more_room() -> None:
    async def script(pilot: Pilot[None], _observer: Scripted, _controls: Recorded) -> None:
        events = pilot.app.query_one("#events")
        before = events.region.height
        await pilot.press("e")
        await until(pilot, lambda: events.region.height >= before + 6)
        await pilot.press("e")
        await until(pilot, lambda: events.region.height == before)

    play(script)


def test_who_somebody_else_started_is_left_alone() -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        observer.snapshot = replace(SNAPSHOT, processes=(replica("inventory-7", ours=False),))
        await until(pilot, lambda: pilot.app.query_one(DataTable).row_count == 1)
        await pilot.press("k", "t", "p", "r")
        await until(pilot, lambda: "inventory-7 was not started by `brewctl start`" in screen(pilot))

    assert play(script).done == []


def test_servers_of_the_users_own_are_only_looked_at() -> None:
    async def script(pilot: Pilot[None], _observer: Scripted, _controls: Recorded) -> None:
        await pilot.press("k", "t", "p", "r", "o", "i", "n", "l", "plus")
        await pilot.pause()
        assert "kill" not in screen(pilot)
        assert "no load" in screen(pilot)
        await pilot.press("q")

    assert play(script, controlled=False).done == []


def test_a_load_without_an_order_service_says_what_to_do() -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        observer.snapshot = replace(SNAPSHOT, processes=SNAPSHOT.processes[1:])
        await until(pilot, lambda: pilot.app.query_one(DataTable).row_count == 4)
        await pilot.press("minus", "l")
        assert "load: 10 orders a second, once it runs" in screen(pilot)
        assert "no order-service runs: press o to add one" in screen(pilot)

    play(script)


class Answering:
    """Stands for a load, whose orders are all acknowledged."""

    def __init__(self, addresses: Sequence[str], record: Callable[[LoadCall], None], **_: object) -> None:
        self._began = addresses, record

    def run(self, stop: threading.Event) -> None:
        _, record = self._began
        record(LoadCall("key", CallOutcome.ACKNOWLEDGED, "id", None, False, 0, 0, 0))
        assert stop.wait(10)


def test_a_load_waits_while_no_order_service_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "Load", Answering)
    said: list[str] = []
    load = LoadControl(said.append)
    load.follow(["a"])
    assert (str(load), load.finish()) == ("no load", "")
    load.start(["a"])
    load.follow(["a"])
    load.follow([])
    load.follow([])
    assert str(load) == "load waits"
    load.follow(["b"])
    assert str(load) == "load 20/s"
    assert said == [
        "load: 20 orders a second to a",
        "load: waits for an order-service: press o to add one",
        "load: 20 orders a second to b",
    ]
    assert load.finish() == "load: orders 2 acknowledged"


def test_a_load_follows_the_order_services_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[list[str], threading.Event]] = []

    class Waiting:
        """Stands for a load."""

        def __init__(self, addresses: list[str], *_: object, **__: object) -> None:
            self.addresses = addresses

        def run(self, stop: threading.Event) -> None:
            loads.append((self.addresses, stop))
            stop.wait(30)

    monkeypatch.setattr(controls, "Load", Waiting)

    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        order, *others = SNAPSHOT.processes
        await pilot.press("l")
        for state, title in (("paused", "load 20/s"), ("gone", "load waits"), ("runs", "load 20/s")):
            observer.snapshot = replace(SNAPSHOT, processes=(replace(order, state=state), *others))
            await until(pilot, lambda word=f" {state}", said=title: word in screen(pilot) and said in screen(pilot))  # type: ignore[misc]
        assert "load: waits for an order-service: press o" in screen(pilot)

    play(script)
    assert [addresses for addresses, _ in loads] == [["127.0.0.1:50081"]] * 2
    assert all(stop.is_set() for _, stop in loads)


def test_a_server_that_goes_away_is_named_in_its_place() -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        away = {"kafka": "kafka does not answer", "postgres": "postgres refused"}
        observer.snapshot = replace(SNAPSHOT, troubles=away)
        for part, words in (
            ("#counters", "✗ out of date: postgres refused"),
            ("#partitions", "✗ out of date: kafka does"),
        ):
            await until(pilot, lambda part=part, words=words: words in str(pilot.app.query_one(part, Static).render()))  # type: ignore[misc]
        observer.snapshot = SNAPSHOT
        await until(pilot, lambda: "kafka answers again: recovered" in screen(pilot))
        assert "✗" not in str(pilot.app.query_one("#counters", Static).render())

    play(script)


def test_the_latest_events_are_the_ones_that_are_shown() -> None:
    async def script(pilot: Pilot[None], _observer: Scripted, _controls: Recorded) -> None:
        for _ in range(30):
            await pilot.press("plus")
        await pilot.press("minus")
        shown = str(pilot.app.query_one("#events", Static).render()).splitlines()
        assert shown[-1].endswith("load: 500 orders a second, once it runs")
        assert len(shown) == pilot.app.query_one("#events").region.height

    play(script)
