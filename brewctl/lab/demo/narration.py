"""The texts of the demo: what happens, and why, for a first-time viewer.

A line has at most 76 characters, which fit into a panel on a terminal of 80.
"""

from collections.abc import Iterable, Mapping

from brewctl.delivery.broker import PARTITIONS
from brewctl.overview import Counts

ACTS = (
    "empty tables and topics",
    "five nodes start and share the partitions",
    "orders flow",
    "kill -9 in the middle",
    "the wait and the rebalance",
    "the verdict",
)

EMPTIES = "every run starts from nothing: empty tables, new topics, no consumer groups"
FORGETS = "a node of an earlier run is a member of its group until its session ends"
STARTS = "order-service and inventory-service start twice, notification-service once"
PUBLISHERS = "order-1 and order-2 take orders, and each publishes what is in the outbox"
COMMITS = "each Create commits an order and its outbox row together: both, or neither"
PUBLISHES = "the publishers take rows with SKIP LOCKED: neither waits for the other"
DRAINS = "the nodes get a SIGTERM: they finish their work, commit and leave the groups"
LATE = "time is up, and not every order is through"


def title(number: int) -> str:
    """Return the title of an act; the first is 1."""
    return f"act {number} of {len(ACTS)}: {ACTS[number - 1]}"


def topic(replicas: int) -> str:
    """Describe the topic."""
    copies = "1 copy" if replicas == 1 else f"{replicas} copies"
    return f"topic: {PARTITIONS} partitions, {copies} of each; an order's key picks its partition"


def group_of_two(first: str, firsts: Iterable[int], second: str, seconds: Iterable[int]) -> str:
    """Say how two nodes share a group's partitions."""
    return f"group inventory: {first} reads {listed(firsts)}, and {second} reads {listed(seconds)}"


def group_of_one(node: str) -> str:
    """Say that a group of one has all partitions."""
    return f"group notifications: {node} reads all {PARTITIONS}; each group gets every order"


def orders(count: int, rate: float) -> str:
    """Describe the orders that the client sends."""
    return f"{count} orders, in turn to order-1 and order-2, about {rate:g} a second"


def progress(counts: Counts) -> str:
    """Describe how many orders are published, reserved and notified."""
    published = counts.orders - counts.outbox_unpublished
    done = f"{counts.reservations} reserved, {counts.notifications} notified"
    return f"so far: {counts.orders} orders, {published} published, {done}"


def threat(victim: str, pid: int, kill_at: int) -> str:
    """Say which node will be killed, and when."""
    return f"orders go on; after order {kill_at} {victim}, process {pid}, is killed"


def killed(victim: str, pid: int) -> str:
    """Say that the node was killed."""
    return f"kill -9 {pid}: {victim} is gone, and Kafka doesn't know it yet"


def no_goodbye(owned: Iterable[int]) -> str:
    """Say why its partitions do not move yet."""
    return f"it could not leave its group: for Kafka it still owns {listed(owned)}"


def wait(owned: Iterable[int], session_s: float) -> str:
    """Say how long Kafka waits."""
    return f"Kafka waits {session_s:g} s for its heartbeat before it moves partitions {listed(owned)}"


def committed(owned: Iterable[int], offsets: Mapping[int, int]) -> str:
    """Say where the next owner will continue."""
    # Without a committed offset, a partition is read from its beginning.
    places = ", ".join(f"{partition}:{offsets.get(partition, 0)}" for partition in owned)
    return f"committed offsets {places}: the next owner starts there"


def piled_up(counts: Counts, owned: Iterable[int]) -> str:
    """Say that the other group works meanwhile, and how many orders wait."""
    waiting = counts.orders - counts.reservations
    return f"all {counts.notifications} orders are notified; {waiting} wait to be reserved, in {listed(owned)}"


def moved(owned: Iterable[int], heir: str, after_s: float) -> str:
    """Say when the partitions moved, and to which node."""
    return f"{after_s:.1f} s after the kill Kafka moves {listed(owned)} to {heir}: the rebalance"


def caught_up(counts: Counts, after_s: float) -> str:
    """Say how long the new owner took for the waiting orders."""
    return f"{after_s:.1f} s later all {counts.reservations} orders are reserved"


def repeats(skipped: int, victim: str, heir: str) -> str:
    """Say how many records the new owner got again."""
    if not skipped:
        return f"no record came twice: {victim} had committed the offsets of all it did"
    if skipped == 1:
        return f"1 record came twice; {heir} found its dedup row and skipped it"
    return f"{skipped} records came twice; {heir} found their dedup rows and skipped them"


def prompt(number: int) -> str:
    """Say what a key does while the tour waits."""
    return f"any key: {title(number)} · q: end"


def listed(partitions: Iterable[int]) -> str:
    """Format partitions as 0, 2, 4."""
    return ", ".join(map(str, partitions))
