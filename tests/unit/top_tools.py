"""A snapshot of a running story, for the tests of the dashboard."""

from dataclasses import replace
from typing import Any

from brewctl.lab.top.snapshot import Counters, GroupPartition, Process, ShownGroup, Snapshot
from brewctl.overview import NodeRow

EFFECTS = {"reservations": 1200, "notifications": 1210}


COUNTERS = Counters(1234, 5, 1229, EFFECTS, set_aside=0, oldest_s=2.4)


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


def with_effects(**effects: int | None) -> Snapshot:
    groups = tuple(ShownGroup(name, "Stable", places(*[f"{name}-1"] * 6)) for name in effects)
    counters = replace(COUNTERS, effects=effects)
    return replace(SNAPSHOT, counters=counters, groups=groups, downstreams=tuple(effects))
