"""The differences between two snapshots, as lines of the event log."""

from collections.abc import Iterator, Mapping

from brewctl.lab.top.snapshot import Process, ShownGroup, Snapshot

_WORKS = {"runs", "starts"}
_EXPECTED = {*_WORKS, "stopped"}  # a start after these is no recovery
_MEANS = {
    "paused": "its partitions stand still",
    "killed": "kill -9",
    "gone": "killed, or crashed",
    "stopped": "it drained",
}
# The meaning is left out for these: they own no partitions, or have no row that tells a drain from a crash.
_MAY_DIFFER = {("paused", "order"), ("paused", "postgres"), ("gone", "kafka"), ("gone", "postgres")}


def between(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Yield a line for each change of servers, processes, partition owners and replicas in sync."""
    for server in sorted({*before.troubles, *after.troubles}):
        if server not in before.troubles:
            yield after.troubles[server]
        elif server not in after.troubles:
            yield f"{server} answers again: recovered"
    for process in after.processes:
        yield from _process(before.process(process.name), process)
    owners = {group.name: {place.partition: place.owner for place in group.places} for group in before.groups}
    for group in after.groups:
        yield from _owners(owners.get(group.name, {}), group)


def _process(before: Process | None, after: Process) -> Iterator[str]:
    who = f"{after.name} ({after.pid})" if after.pid else after.name
    if before is None:
        yield f"{who} {'started' if after.state in _WORKS else after.state}"
    elif after.state in _WORKS and after.pid != before.pid:
        yield f"{who} started{'' if before.state in _EXPECTED else ': recovered'}"
    elif before.state not in {after.state, "starts"}:
        yield f"{who} {_became(before, after)}"
    if before and before.in_sync < before.holds and after.in_sync == after.holds:
        yield f"{after.name} has all its {after.holds} replicas in sync: recovered"


def _became(before: Process, after: Process) -> str:
    if after.state in _WORKS:
        return "resumed" if before.state == "paused" else "is back: recovered"
    if after.state in _MEANS and (after.state, after.role) not in _MAY_DIFFER:
        return f"{after.state}: {_MEANS[after.state]}"
    return after.state


def _owners(owned: Mapping[int, str], after: ShownGroup) -> Iterator[str]:
    moved: dict[tuple[str, str], list[int]] = {}
    for place in after.places:
        if (owner := owned.get(place.partition, "")) != place.owner:
            moved.setdefault((owner, place.owner), []).append(place.partition)
    for (old, new), partitions in sorted(moved.items()):
        those = " ".join(map(str, partitions))
        if not new:
            yield f"{after.name}: {those} revoked from {old}"
        elif not old:
            yield f"{after.name}: {those} assigned to {new}"
        else:
            yield f"{after.name}: {those} revoked from {old}, assigned to {new}"
