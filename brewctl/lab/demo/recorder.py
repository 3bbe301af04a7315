"""Record what happens in the demo, for the report, and pass it to the view."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from brewctl import overview
from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Admin, GroupMember
from brewctl.delivery.schema.homes import Databases
from brewctl.lab.demo import narration
from brewctl.lab.play.nodes import Node
from brewctl.lab.record.history import Act, ActEvent, FlowSample, Ownership


@dataclass(frozen=True)
class Scene:
    """The state that a view shows, read from PostgreSQL, Kafka and the process table."""

    orders: int
    record: Act
    counts: overview.Counts = field(default_factory=lambda: overview.Counts(0, 0, 0, 0))
    work: dict[str, int] = field(default_factory=dict)
    owners: list[GroupMember] = field(default_factory=list)
    # node → "starts", "runs", "killed", "stopped"
    states: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)


class View(Protocol):
    """Shows the demo."""

    def begin(self, title: str) -> None:
        """Begin an act."""

    def say(self, text: str) -> None:
        """Show a narration."""

    def tell(self, line: str) -> None:
        """Show a line that a node has printed."""

    def ask(self, text: str) -> None:
        """Show what a key does, until the next act begins."""

    def show(self, scene: Scene) -> None:
        """Show the present state."""


class TourKeys(Protocol):
    """The keys of a terminal, for a demo that waits for one before each act."""

    def forget(self) -> None:
        """Discard the keys that were pressed up to now."""

    def pressed(self) -> bool:
        """Say whether a key was pressed. Raises KeyboardInterrupt for the key that ends the demo."""


class Recorder:
    """Records the demo, and passes it to a view. `say` and `tell` may be called from any thread."""

    def __init__(self, view: View, *, orders: int) -> None:
        self.act = Act("demo", f"five nodes, {orders} orders, a kill -9 in the middle")
        self.scene = Scene(orders, self.act)
        self._view = view
        self._began = time.monotonic()

    @property
    def now_s(self) -> float:
        """Seconds since the play began."""
        return time.monotonic() - self._began

    def begin(self, number: int) -> None:
        """Begin an act."""
        title = narration.title(number)
        self._keep(title)
        self._view.begin(title)

    def say(self, text: str) -> None:
        """Record and show a narration."""
        self._keep(text)
        self._view.say(text)

    def tell(self, line: str) -> None:
        """Record and show a line that a node has printed."""
        self._keep(line)
        self._view.tell(line)

    def ask(self, text: str) -> None:
        """Show what a key does."""
        self._view.ask(text)

    def _keep(self, text: str) -> None:
        self.act.events.append(ActEvent(self.now_s, text))

    def look(self, settings: Settings, databases: Databases, admin: Admin, nodes: Sequence[Node]) -> None:
        """Read the present state from PostgreSQL, Kafka and the processes; record and show it."""
        at_s, (counts, away) = self.now_s, overview.with_homes(databases)
        if away:
            raise away
        done = {"reservations": counts.reservations, "notifications": counts.notifications}
        self.act.samples.append(FlowSample(at_s, counts.orders, counts.outbox_unpublished, done))
        groups = [
            (downstream.group, admin.group(registry.kafka_group(settings, downstream), settings.topic))
            for downstream in registry.configured(settings)
        ]
        for name, group in groups:
            self.act.ownerships.append(Ownership(self.now_s, name, group.owners))
        self.scene = replace(
            self.scene,
            counts=counts,
            work=overview.work_by_node(databases),
            owners=[member for _, group in groups for member in group.members],
            states={node.name: _state(node) for node in nodes},
            pids={node.name: node.process.pid for node in nodes},
        )
        self._view.show(self.scene)


def _state(node: Node) -> str:
    match node.process.poll():
        case None:
            return "runs" if node.ready else "starts"
        case -9:
            return "killed"
        case _:
            return "stopped"
