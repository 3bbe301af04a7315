"""What the dashboard's parts show."""

from dataclasses import replace
from typing import Any

import pytest

from brewctl.lab.top import panels
from brewctl.lab.top.rates import Rates
from brewctl.lab.top.snapshot import GroupPartition, ShownGroup, Snapshot
from tests.unit.top_tools import COUNTERS, EFFECTS, SNAPSHOT, places, replica, with_effects

AWAY = {"postgres": "postgres h:1/b refused"}


def counters(snapshot: Snapshot, before: Snapshot | None = None) -> dict[str, list[str]]:
    """The words after each name. A rate is counted since `before`."""
    rates = Rates()
    if before:
        rates.add(replace(before, at_s=98.0))
        rates.add(snapshot)
    lines = panels.counters(snapshot, rates, 80, most=5).plain.splitlines()
    assert all(len(line) <= 80 for line in lines)
    return {line[:14].strip(): line[14:].split() for line in lines}


def partitions(snapshot: Snapshot, width: int = 80) -> list[list[str]]:
    lines = panels.partitions(snapshot, {}, width, most=5).plain.splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.split() for line in lines]


def holding(**changed: Any) -> Snapshot:
    return replace(SNAPSHOT, counters=replace(COUNTERS, **changed))


@pytest.mark.parametrize(
    ("snapshot", "before", "name", "words"),
    [
        (SNAPSHOT, holding(orders=1214), "orders", "1,234 10/s"),
        (SNAPSHOT, None, "unpublished", "5 2.4 s old"),
        (SNAPSHOT, SNAPSHOT, "dead letters", "0 0/s"),
        (holding(orders=0), SNAPSHOT, "orders", "0 0/s"),  # a table that was emptied did not grow
        (holding(estimated=frozenset(EFFECTS)), None, "reservations", "~1,200"),
        (holding(estimated=frozenset(EFFECTS)), None, "unpublished", "5"),
        (with_effects(loyalty=50), with_effects(loyalty=10), "loyalty", "50 20/s"),
        (with_effects(loyalty=None, reservations=7), None, "loyalty", "- can't be"),
        (with_effects(loyalty=None, reservations=7), None, "reservations", "7"),
        (Snapshot(0.0, troubles=AWAY), None, "orders", "-"),
    ],
)
def test_a_counter(snapshot: Snapshot, before: Snapshot | None, name: str, words: str) -> None:
    assert " ".join(counters(snapshot, before)[name]).startswith(words)


def test_what_needs_somebody_names_the_command() -> None:
    lines = counters(replace(holding(set_aside=2), dead_letters=3))
    assert "2 set aside: see `brewctl outbox list`" in " ".join(lines["unpublished"])
    assert "see `brewctl dlq list`" in " ".join(lines["dead letters"])


def test_dead_letters_have_a_rate_whatever_postgres_says() -> None:
    rates = Rates()
    rates.add(replace(SNAPSHOT, at_s=99.0, troubles=AWAY))
    rates.add(replace(SNAPSHOT, dead_letters=3, troubles=AWAY))
    assert rates.now("dead letters") == 3
    assert rates.history("orders") == []


def test_the_map_tells_each_partitions_owner_and_lag() -> None:
    numbers, inventory = partitions(SNAPSHOT)
    assert numbers == ["partition", *"012345"]
    assert inventory == ["inventory", *["1", "+0", "2", "+0"] * 3]


def test_the_map_says_that_it_has_not_room_for_all() -> None:
    wide = replace(SNAPSHOT, groups=(ShownGroup("inventory", "Stable", places(*["inventory-1"] * 12)),))
    assert partitions(wide)[0] == ["first", "6", "of", "12", *"012345"]
    assert partitions(wide, 150)[0] == ["partition", *map(str, range(12))]


def test_the_map_shows_what_stands_still() -> None:
    gone = replace(SNAPSHOT, processes=(replica("inventory-1", state="gone"),))
    owned = (
        GroupPartition(0, "inventory-1", 123, 12.2),
        GroupPartition(1, "inventory-1", 12_345, 720),
        GroupPartition(2, "", 3, 1.0),
    )
    drawn = partitions(replace(gone, groups=(ShownGroup("inventory", "PreparingRebalance", owned),)))
    assert drawn[1] == ["inventory…", "1✗+123", "12s", "1✗+12k", "12m", "-", "+3"]


def test_more_downstreams_than_there_is_room_for() -> None:
    snapshot = with_effects(**{f"d{number}": number for number in range(8)})
    assert [name.split()[0] for name in counters(snapshot)][3:] == ["d0", "d1", "d2", "d3", "…", "dead"]
    assert [line[0] for line in partitions(snapshot)] == ["partition", "d0", "d1", "d2", "d3", "…"]


def test_each_process_says_what_it_does() -> None:
    said = {process.name: panels.process(process, "", (16, 8, 9, 50))[-1].plain for process in SNAPSHOT.processes}
    assert said["order-1"] == "port 50081, 9 published, seen 0.4 s ago"
    assert said["inventory-1"] == "10 processed, 1 skipped, seen 0.4 s ago"
    assert said["kafka-1"] == "leads 0 3, in sync 6/6, port 1"
    assert said["postgres"] == "127.0.0.1:2/brew"
