"""The dashboard as a user has it: its screen and its keys, by Textual's pilot."""

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import cast

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from brewctl.config import Settings
from brewctl.errors import BrewError
from brewctl.lab.play.nodes import Role
from brewctl.lab.top import app, controls
from brewctl.lab.top.app import Top
from brewctl.lab.top.controls import Controls
from brewctl.lab.top.keys import adding
from brewctl.lab.top.observer import Observer
from brewctl.lab.top.snapshot import Process, Snapshot
from tests.unit.top_tools import SNAPSHOT, replica, with_effects

ADDS = adding(Settings())


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between two looks would be most of these tests' time."""
    monkeypatch.setattr(app, "EVERY_S", 0.25)


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
    top = Top(cast("Observer", observer), cast("Controls", controls) if controlled else None, where="here", adds=ADDS)

    async def run() -> None:
        async with top.run_test(size=size) as pilot:
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


@pytest.mark.parametrize(("size", "downstreams"), [((80, 24), 2), ((200, 60), 2), ((80, 24), 9)])
def test_everything_has_its_place(size: tuple[int, int], downstreams: int) -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        observer.snapshot = with_effects(**{f"d{each}": each for each in range(downstreams)})
        await until(pilot, lambda: "d0" in screen(pilot))
        await pilot.pause()
        for part in ("orders", "dead letters", "partition", "kill -9", "here"):
            assert part in screen(pilot)
        lowest = max(part.region.bottom for part in pilot.app.query("Static, DataTable") if part.display)
        assert lowest == pilot.app.query_one("#keys").region.bottom == size[1]
        assert pilot.app.query_one("#events").region.height >= (3 if downstreams == 2 else 1)
        assert pilot.app.query_one(DataTable).region.height >= 4

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
        assert "inventory-1: the last action is not finished" in screen(pilot)
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


def test_keys_that_can_do_nothing_say_why() -> None:
    async def script(pilot: Pilot[None], observer: Scripted, _controls: Recorded) -> None:
        observer.snapshot = replace(SNAPSHOT, processes=(replica("inventory-7", ours=False),))
        await until(pilot, lambda: pilot.app.query_one(DataTable).row_count == 1)
        await pilot.press("k", "t", "p", "r")
        await until(pilot, lambda: "inventory-7 was not started by `brewctl start`" in screen(pilot))
        await pilot.press("minus", "l")
        assert "load: 10 orders a second, once it runs" in screen(pilot)
        assert "no order-service runs: press o to add one" in screen(pilot)

    assert play(script).done == []


def test_the_latest_events_are_shown_and_can_have_more_room() -> None:
    async def script(pilot: Pilot[None], _observer: Scripted, _controls: Recorded) -> None:
        events = pilot.app.query_one("#events", Static)
        before = events.region.height
        await pilot.press("e")
        await until(pilot, lambda: events.region.height >= before + 6)
        await pilot.press("e", *["plus"] * before, "minus")
        await until(pilot, lambda: events.region.height == before)
        shown = str(events.render()).splitlines()
        assert len(shown) == before
        assert "once it runs" in shown[-1]
        assert shown[-1] != shown[-2]

    play(script)


def test_servers_of_the_users_own_are_only_looked_at() -> None:
    async def script(pilot: Pilot[None], _observer: Scripted, _controls: Recorded) -> None:
        await pilot.press("k", "t", "p", "r", "o", "i", "n", "l", "plus")
        await pilot.pause()
        assert "kill" not in screen(pilot)
        assert "no load" in screen(pilot)
        await pilot.press("q")

    assert play(script, controlled=False).done == []


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
