"""The story as a play: five nodes, 200 orders, one kill -9 in the middle, and a verdict.

reset ─► start nodes ─► orders … kill inventory-1 … orders ─► wait for the last effect ─► verdict
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from brewctl import overview
from brewctl.client import OrderClient
from brewctl.config import Settings
from brewctl.delivery import database, topics
from brewctl.delivery.broker import PARTITIONS, Admin, Member, open_admin
from brewctl.delivery.database import Connection
from brewctl.errors import BrewError
from brewctl.lab.nodes import INVENTORY_NODES, NOTIFICATION_NODES, ORDER_NODES, Node, Nodes, command

_ORDERS_PER_S = 40.0  # slow enough to watch
_LOOK_EVERY_S = 0.25
_CATCH_UP_S = 60.0  # beyond the session timeout
_VICTIM = "inventory-1"


@dataclass
class Scene:
    """What a view shows: everything in it was read from PostgreSQL, Kafka or the process table."""

    orders: int
    counts: overview.Counts = field(default_factory=lambda: overview.Counts(0, 0, 0, 0))
    work: dict[str, int] = field(default_factory=dict)
    owners: list[Member] = field(default_factory=list)
    # node → "runs", "killed", "stopped"
    nodes: dict[str, str] = field(default_factory=dict)


class View(Protocol):
    """Where the play is shown."""

    def tell(self, text: str) -> None:
        """Say what happens and why, or pass a node's line on."""

    def show(self, scene: Scene) -> None:
        """Show where everything stands."""


@dataclass(frozen=True)
class Verdict:
    """How the play ended: what was claimed, and whether it holds."""

    checks: list[tuple[str, bool, str]]
    shares: dict[str, int]
    seconds_without_progress: float

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(holds for _, holds, _ in self.checks)


def run(settings: Settings, view: View, *, orders: int, kill_at: int, logs: Path) -> Verdict:
    """Play it on servers that are up; destroys what is in the tables and topics. Leaves no process behind."""
    scene = Scene(orders)
    with database.connect(settings) as connection:
        view.tell("empty tables, new topics, no groups: every run starts from nothing")
        database.initialize(connection, reset=True)
        topics.create(settings, recreate=True)
        with open_admin(settings) as admin, Nodes(settings, logs=logs, on_line=view.tell) as nodes:
            stage = _Stage(settings, view, scene, nodes, connection, admin)
            addresses = stage.start_nodes()
            sent = stage.send(addresses, kill_at)
            stage.await_effects(sent)
            return stage.verdict(sent)


class _Stage:
    def __init__(
        self, settings: Settings, view: View, scene: Scene, nodes: Nodes, connection: Connection, admin: Admin
    ) -> None:
        self._settings = settings
        self._view = view
        self._scene = scene
        self._nodes = nodes
        self._connection = connection
        self._admin = admin
        self._last_progress = time.monotonic()
        self._longest_pause_s = 0.0

    def start_nodes(self) -> list[str]:
        """Start the five nodes and wait until each listens or owns its partitions. Returns the addresses for Create."""
        self._view.tell("five nodes start: order-service and inventory-service twice, notification-service once")
        servers = [self._nodes.start(name, *command(name), "--port", "0") for name in ORDER_NODES]
        consumers = [self._nodes.start(name, *command(name)) for name in (*INVENTORY_NODES, *NOTIFICATION_NODES)]
        self._look()
        for node in servers:
            node.wait_ready()
        shares = (range(0, PARTITIONS, 2), range(1, PARTITIONS, 2), range(PARTITIONS))
        for node, partitions in zip(consumers, map(list, shares), strict=True):
            node.wait_for(f"partitions {partitions}", _owns(partitions))
            self._look()
        return [node.address for node in servers]

    def send(self, addresses: list[str], kill_at: int) -> list[str]:
        """Send the orders round robin and kill the victim after `kill_at` of them. Returns the acknowledged ids."""
        self._view.tell(f"{self._scene.orders} orders, in turn to {' and '.join(addresses)}")
        acknowledged: list[str] = []
        stop = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="client") as executor:
            sending = executor.submit(self._send, addresses, acknowledged, kill_at, stop)
            try:
                self._watch_until(sending.done)
            finally:
                stop.set()
        _outcome(sending)
        return acknowledged

    def _send(self, addresses: list[str], acknowledged: list[str], kill_at: int, stop: threading.Event) -> None:
        pause_s = 1 / max(_ORDERS_PER_S, self._scene.orders / 10)
        with OrderClient(addresses) as client:
            for number in range(self._scene.orders):
                if number == kill_at:
                    self._kill_victim()
                acknowledged.append(client.create(f"customer-{number % 7 + 1}", amount_cents=450, currency="EUR"))
                if stop.wait(pause_s):
                    return

    def _kill_victim(self) -> None:
        victim = next(node for node in self._nodes.started if node.name == _VICTIM)
        victim.kill()
        self._view.tell(f"kill -9 {victim.process.pid}: {_VICTIM} is gone, and Kafka doesn't know it yet")
        session = f"{self._settings.limits.session_s:g} s"
        self._view.tell(f"it waits {session} for a heartbeat before partitions {victim.assignment} move")

    def await_effects(self, acknowledged: list[str]) -> None:
        """Wait until every acknowledged order is published, reserved and notified, or time is up."""
        deadline = time.monotonic() + self._settings.limits.session_s + _CATCH_UP_S
        wanted = overview.Counts(len(acknowledged), 0, len(acknowledged), len(acknowledged))
        self._watch_until(lambda: self._scene.counts == wanted or time.monotonic() > deadline)

    def verdict(self, acknowledged: list[str]) -> Verdict:
        """Stop the nodes and judge by what the tables say."""
        shares = overview.distribution(self._connection)
        unclean = self._nodes.stop()
        self._look()
        lost = overview.missing(self._connection, acknowledged)
        unfinished = overview.unfinished(self._connection)
        wanted = self._scene.orders
        heirs = {node: share for node, share in shares.items() if node != _VICTIM}
        checks = [
            (f"{wanted} orders acknowledged", len(acknowledged) == wanted, f"{len(acknowledged)}"),
            ("none of them lost", not lost, ", ".join(lost[:3])),
            ("each published, reserved and notified exactly once", not unfinished, "; ".join(map(str, unfinished[:3]))),
            ("four counters agree", self._agree(wanted), str(self._scene.counts)),
            ("the survivor took over", sum(heirs.values()) > 0, overview.distribution_line(shares)),
            ("every other node drained cleanly", not unclean, ", ".join(node.name for node in unclean)),
        ]
        return Verdict(checks, shares, self._longest_pause_s)

    def _agree(self, wanted: int) -> bool:
        return self._scene.counts == overview.Counts(wanted, 0, wanted, wanted)

    def _watch_until(self, over: Callable[[], bool]) -> None:
        while not over():
            self._look()
            time.sleep(_LOOK_EVERY_S)
        self._look()

    def _look(self) -> None:
        scene = self._scene
        before = scene.counts
        scene.counts = overview.counts(self._connection)
        scene.work = overview.work_by_node(self._connection)
        scene.owners = [
            member for group in topics.GROUPS for member in self._admin.members(group, self._settings.topic)
        ]
        scene.nodes = {node.name: _state(node) for node in self._nodes.started}
        now = time.monotonic()
        if scene.counts.reservations != before.reservations or scene.counts.reservations == scene.counts.orders:
            self._last_progress = now
        self._longest_pause_s = max(self._longest_pause_s, now - self._last_progress)
        self._view.show(scene)


def _outcome(sending: "Future[None]") -> None:
    if error := sending.exception():
        raise error if isinstance(error, BrewError) else BrewError(f"the client failed: {error}")


def _state(node: Node) -> str:
    match node.process.poll():
        case None:
            return "runs"
        case -9:
            return "killed"
        case _:
            return "stopped"


def _owns(partitions: list[int]) -> Callable[[Node], bool]:
    return lambda node: node.assignment == partitions
