"""Collect the state of all that runs every second. One thread asks PostgreSQL and one Kafka, with time limits.

While a server is away, its last answers are shown together with the error.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import psycopg

from brewctl import overview
from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.broker import Admin, Broker, Partition, open_admin
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import homes
from brewctl.errors import BrewError, UnreachableError
from brewctl.lab.top.counting import Counting, Effects
from brewctl.lab.top.processes import processes_of
from brewctl.lab.top.snapshot import Counters, GroupPartition, Process, ShownGroup, Snapshot
from brewctl.lifecycle import beside
from brewctl.overview import consumer_groups
from brewctl.overview.consumer_groups import GroupView
from brewctl.sandbox import state

EVERY_S = 1.0
_ANSWER_S = 3.0  # longer answers are given up


@dataclass(frozen=True)
class Cluster:
    """Kafka's last answers."""

    brokers: Sequence[Broker] = ()
    partitions: Sequence[Partition] = ()
    groups: Sequence[GroupView] = ()
    dead_letters: int | None = None


@dataclass
class _Owners:
    """The owner of each partition of a group, and when it got it."""

    since: dict[int, tuple[str, float | None]] = field(default_factory=dict)

    def places(self, group: GroupView, now: float) -> Iterator[GroupPartition]:
        """Yield the group's present partitions, and remember their owners."""
        first = not self.since
        for part in group.partitions:
            owner, since = self.since.get(part.partition, ("", None))
            if part.owner != owner or part.partition not in self.since:
                since = None if first else now
                self.since[part.partition] = part.owner, since
            yield GroupPartition(part.partition, part.owner, part.lag, None if since is None else now - since)


class Observer:
    """Collects snapshots. `home`: the sandbox's; None if the servers are the user's own."""

    def __init__(self, settings: Settings, home: Path | None) -> None:
        self._settings = settings.impatient
        self._home = home
        self._stop = threading.Event()
        self._counters: Counters | None = None
        self._downstreams = registry.configured(settings)
        # The settings of downstreams' own databases by group, and the last counts in them.
        self._apart = {each.group: home.settings for home in homes.apart(self._settings) for each in home.downstreams}
        self._done_apart: dict[str, tuple[int | None, bool]] = {}
        self._rows: tuple[float, list[overview.NodeRow]] = (
            0.0,
            [],
        )  # the replicas' rows, and when they were read
        self._cluster = Cluster()
        self._owners: dict[str, _Owners] = {}
        self._troubles: dict[str, str] = {}
        # Addresses are removed from error messages: the title shows them, and the line has little room.
        self._places = {"postgres": database.place(settings.database_url), "kafka": ",".join(settings.brokers)}
        self._first_looks = {"postgres": threading.Event(), "kafka": threading.Event()}

    @contextlib.contextmanager
    def looking(self) -> Iterator[Self]:
        """Run the threads while the block runs."""
        asked = {"postgres": self._ask_postgres, "kafka": self._ask_kafka}
        actors = {f"top-{server}": partial(self._again_and_again, server, ask) for server, ask in asked.items()}
        for each in self._downstreams:
            if each.group in self._apart:
                actors[f"top-{each.group}"] = partial(self._ask_apart, each, self._apart[each.group])
        with beside(actors, self._stop):
            yield self

    def wait_for_first_look(self, *, within_s: float) -> None:
        """Wait until both servers have answered, or have failed to."""
        deadline = time.monotonic() + within_s
        for looked in self._first_looks.values():
            looked.wait(max(0.0, deadline - time.monotonic()))

    def look(self) -> Snapshot:
        """Return a snapshot of the last answers, with the process table as it is now."""
        now, cluster, troubles, (read_at, rows) = time.monotonic(), self._cluster, dict(self._troubles), self._rows
        try:
            known = state.load(self._home) if self._home else None
        except BrewError as error:
            known, troubles["state"] = None, str(error)
        return Snapshot(
            at_s=now,
            counters=self._counters and self._with_apart(self._counters),
            downstreams=tuple(each.counted_as for each in self._downstreams),
            dead_letters=cluster.dead_letters,
            processes=tuple(
                _later(process, now - read_at)
                for process in processes_of(self._settings, known, rows, cluster.brokers, cluster.partitions, troubles)
            ),
            groups=tuple(
                ShownGroup(
                    group.name, group.state, tuple(self._owners.setdefault(group.name, _Owners()).places(group, now))
                )
                for group in cluster.groups
            ),
            troubles=troubles,
        )

    def _again_and_again(self, server: str, ask: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                ask()
            except Exception as error:  # noqa: BLE001 - shown on the screen; the thread goes on
                self._troubles[server] = self._said(server, error)
                self._first_looks[server].set()
            self._stop.wait(EVERY_S)

    def _said(self, server: str, error: Exception) -> str:
        if not isinstance(error, BrewError):
            return f"{server}: {type(error).__name__} {error}"
        # A key starts a server that is away, so its hint is left out. Other errors keep theirs.
        said = error.message if isinstance(error, UnreachableError) else str(error)
        return said.replace(f" {self._places[server]}", "")

    def _answered(self, server: str, began: float) -> None:
        self._troubles.pop(server, None)
        self._first_looks[server].set()
        self._stop.wait(max(0.0, began + EVERY_S - time.monotonic()))

    def _with_apart(self, counters: Counters) -> Counters:
        """Add the counts from downstreams' own databases."""
        known = {name: (count, name in counters.estimated) for name, count in counters.effects.items()}
        known |= self._done_apart
        done = {each.counted_as: known.get(each.counted_as, (None, False)) for each in self._downstreams}
        return replace(
            counters,
            effects={name: count for name, (count, _) in done.items()},
            estimated=counters.estimated | {name for name, (_, about) in done.items() if about},
        )

    def _ask_apart(self, downstream: Downstream, home: Settings) -> None:
        effects = Effects(downstream)
        while not self._stop.is_set():
            try:
                with database.connect(home, name="brewctl top") as connection:
                    while not self._stop.is_set():
                        with connection.answering_within(_ANSWER_S):
                            self._done_apart[downstream.counted_as] = effects.look(connection)
                        self._stop.wait(EVERY_S)
            except (BrewError, psycopg.Error):  # its counter shows that
                self._done_apart[downstream.counted_as] = None, False
            self._stop.wait(EVERY_S)

    def _ask_postgres(self) -> None:
        counting = Counting([each for each in self._downstreams if each.group not in self._apart])
        with database.connect(self._settings, name="brewctl top") as connection:
            while not self._stop.is_set():
                began = time.monotonic()
                with connection.answering_within(_ANSWER_S):
                    self._rows = time.monotonic(), overview.nodes(connection)
                    self._counters = counting.look(connection)
                self._answered("postgres", began)

    def _ask_kafka(self) -> None:
        with open_admin(self._settings) as admin:
            while not self._stop.is_set():
                began = time.monotonic()
                self._cluster = self._described(admin)
                self._answered("kafka", began)

    def _described(self, admin: Admin) -> Cluster:
        letters = admin.ends(self._settings.dead_letter_topic)
        return Cluster(
            brokers=admin.brokers(),
            partitions=admin.describe(self._settings.topic),
            groups=consumer_groups.groups(admin, self._settings),
            dead_letters=sum(end - first for first, end in letters.values()),
        )


def _later(process: Process, seconds: float) -> Process:
    """Return a process whose row is `seconds` older than when it was read."""
    row = process.row
    return replace(process, row=replace(row, silent_s=row.silent_s + seconds)) if row else process
