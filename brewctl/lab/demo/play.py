"""Run the demo, act by act.

empty ─► start nodes ─► orders … kill inventory-1 … orders ─► wait for the last effect ─► verdict
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from brewctl import overview
from brewctl.config import Settings
from brewctl.delivery.broker import PARTITIONS, Admin, open_admin
from brewctl.delivery.schema import homes, registration
from brewctl.delivery.schema.homes import Databases
from brewctl.delivery.topics import topics
from brewctl.errors import BrewError
from brewctl.lab.demo import narration
from brewctl.lab.demo.customer import Customer
from brewctl.lab.demo.recorder import Recorder, TourKeys, View
from brewctl.lab.play.cast import ORDER_NODES, STORY
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lab.record.history import Act, Claim, FaultSpan, Mark
from brewctl.lab.record.watch import standstill_s

_LOOK_EVERY_S = 0.2
_FORGET_S = 20.0  # longer than the session timeout of any demo
_CATCH_UP_S = 60.0  # after the session timeout
(_VICTIM, _HEIR), (_NOTIFIER,) = STORY.consumers
_SKIPPED = re.compile(r"skipped=(\d+)")


@dataclass(frozen=True)
class DemoVerdict:
    """The verdict: claims and whether each holds."""

    claims: list[Claim]
    shares: dict[str, int]
    longest_pause_s: float  # in reservations

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)


def run(
    settings: Settings, view: View, *, orders: int, kill_at: int, logs: Path, keys: TourKeys | None = None
) -> tuple[DemoVerdict, Act]:
    """Run the demo on running servers. Empties tables and topics first; ends all nodes.

    With `keys`, each act but the first waits for a key. The nodes work on meanwhile.
    """
    recorder = Recorder(view, orders=orders)
    with homes.opened(settings) as databases:
        recorder.begin(1)
        recorder.say(narration.EMPTIES)
        _await_empty_groups(settings, recorder)
        registration.initialize_all(settings, databases.story, reset=True)
        topics.create(settings, recreate=True)
        with open_admin(settings) as admin:
            recorder.say(narration.topic(len(admin.describe(settings.topic)[0].replicas)))
            play = _DemoRun(settings, recorder, databases, admin, logs, keys)
            with play.nodes:
                addresses = play.start_nodes()
                # The customer pauses before the kill, so that the viewer sees the flow first.
                customer = Customer(
                    addresses,
                    orders=orders,
                    rest_at=max(1, kill_at // 2),
                    kill_at=kill_at,
                    kill=play.kill_victim,
                    security=settings.order_security,
                )
                play.announce_orders(customer)
                with customer.sending():
                    play.let_orders_flow(customer)
                    play.await_kill(customer, kill_at)
                    play.await_effects(customer)
                return play.judge(customer.acknowledged), recorder.act


def _await_empty_groups(settings: Settings, recorder: Recorder) -> None:
    """Wait until the groups are empty. Members of an interrupted run stay until their session timeout."""
    try:
        topics.await_empty_groups(settings, timeout_s=0)
    except BrewError:
        recorder.say(narration.FORGETS)
        topics.await_empty_groups(settings, timeout_s=_FORGET_S)


class _DemoRun:
    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        databases: Databases,
        admin: Admin,
        logs: Path,
        keys: TourKeys | None,
    ) -> None:
        self._settings = settings
        self._recorder = recorder
        self.nodes = Nodes(settings, logs=logs, on_line=self._hear)
        self._databases = databases
        self._admin = admin
        self._keys = keys
        # Times of events; inf until they happen.
        self._killed_s = self._moved_s = self._late_s = inf

    def start_nodes(self) -> list[str]:
        """Start five nodes; wait until each listens or owns its partitions. Returns the order-services' addresses."""
        self._begin(2)
        say = self._recorder.say
        say(narration.STARTS)
        session = ("--session-timeout", f"{self._session_s:g}")
        servers = [self.nodes.start(name, *STORY.commands[name], "--port", "0") for name in ORDER_NODES]
        consumers = [self.nodes.start(name, *STORY.commands[name], *session) for name in (_VICTIM, _HEIR, _NOTIFIER)]
        self._look()
        for node in servers:
            node.wait_ready()
        say(narration.PUBLISHERS)
        shares = [list(range(0, PARTITIONS, 2)), list(range(1, PARTITIONS, 2)), list(range(PARTITIONS))]
        for node, partitions in zip(consumers, shares, strict=True):
            node.wait_for(f"partitions {partitions}", _owns(partitions))
            self._look()
        say(narration.group_of_two(_VICTIM, shares[0], _HEIR, shares[1]))
        say(narration.group_of_one(_NOTIFIER))
        return [node.address for node in servers]

    def announce_orders(self, customer: Customer) -> None:
        """Begin act 3: announce the orders before the first is sent."""
        self._begin(3)
        self._recorder.say(narration.orders(self._orders, customer.rate))
        self._recorder.say(narration.COMMITS)

    def let_orders_flow(self, customer: Customer) -> None:
        """Wait until the customer pauses."""
        say = self._recorder.say
        self._watch_until(lambda: customer.rests or customer.done)
        say(narration.PUBLISHES)
        say(narration.progress(self._counts))

    def await_kill(self, customer: Customer, kill_at: int) -> None:
        """Begin act 4: let the customer go on until the victim is killed."""
        self._begin(4)
        self._recorder.say(narration.threat(_VICTIM, self._node(_VICTIM).process.pid, kill_at))
        customer.go_on()
        self._watch_until(lambda: self._killed_s < inf or customer.done)

    def kill_victim(self) -> None:
        """Kill the victim. The customer's thread calls this between two orders."""
        victim = self._node(_VICTIM)
        killed_s = self._recorder.now_s
        victim.kill()
        self._recorder.act.faults.append(FaultSpan(killed_s, inf, f"kill -9 {_VICTIM}", (_VICTIM,)))
        self._recorder.say(narration.killed(_VICTIM, victim.process.pid))
        self._recorder.say(narration.no_goodbye(victim.assignment))
        self._killed_s = killed_s

    def await_effects(self, customer: Customer) -> None:
        """Begin act 5: wait until the partitions have moved and all orders have their effects, or time is up."""
        self._begin(5)
        say, owned = self._recorder.say, self._node(_VICTIM).assignment
        if not self._moved:  # it may have happened while act 5 waited for a key
            say(narration.wait(owned, self._session_s))
            say(narration.committed(owned, self._admin.committed("inventory", self._settings.topic)))
            self._watch_until(lambda: self._moved or self._counts.notifications == self._orders or self._late(customer))
        if not self._moved and self._counts.notifications == self._orders:
            say(narration.piled_up(self._counts, owned))
        self._watch_until(lambda: self._moved or self._late(customer))
        if self._moved:
            say(narration.moved(owned, _HEIR, self._moved_s - self._killed_s))
        self._watch_until(lambda: (customer.done and self._through) or self._late(customer))
        if self._moved and self._through:
            say(narration.caught_up(self._counts, max(0.0, self._reserved_s() - self._moved_s)))
        else:
            say(narration.LATE)

    def judge(self, acknowledged: list[str]) -> DemoVerdict:
        """Begin act 6: stop the nodes, and judge by the tables."""
        self._begin(6)
        self._recorder.say(narration.DRAINS)
        shares = overview.distribution(self._databases)
        unclean = self.nodes.stop()
        self._look()
        if skipped := _SKIPPED.search("\n".join(self._node(_HEIR).lines)):
            self._recorder.say(narration.repeats(int(skipped[1]), _VICTIM, _HEIR))
        pause_s = standstill_s(self._recorder.act.samples, 0.0, "reservations")
        verdict = DemoVerdict(self._claims(acknowledged, unclean), shares, pause_s)
        self._record(verdict)
        return verdict

    def _claims(self, acknowledged: list[str], unclean: list[Node]) -> list[Claim]:
        lost = overview.missing(self._databases.story, acknowledged)
        unfinished = overview.unfinished(self._databases)
        return [
            Claim(f"{self._orders} orders acknowledged", len(acknowledged) == self._orders, f"{len(acknowledged)}"),
            Claim("none of them lost", not lost, ", ".join(lost[:3])),
            Claim(
                "each published, reserved and notified exactly once",
                not unfinished,
                "; ".join(map(str, unfinished[:3])),
            ),
            Claim("four counters agree", self._through, str(self._counts)),
            Claim("the survivor took over", self._moved, f"{_HEIR} owns {self._node(_HEIR).assignment}"),
            Claim("every other node drained cleanly", not unclean, ", ".join(node.name for node in unclean)),
        ]

    def _record(self, verdict: DemoVerdict) -> None:
        act = self._recorder.act
        act.ok, act.claims = verdict.ok, verdict.claims
        act.figures = [
            ("orders", str(self._orders)),
            *((f"reserved by {node}", str(share)) for node, share in verdict.shares.items()),
            ("session timeout", f"{self._session_s:g} s"),
            ("from the kill to the rebalance", _seconds(self._moved_s - self._killed_s)),
            ("longest pause in reservations", _seconds(verdict.longest_pause_s)),
        ]

    @property
    def _session_s(self) -> float:
        return self._settings.limits.session_s

    @property
    def _orders(self) -> int:
        return self._recorder.scene.orders

    @property
    def _counts(self) -> overview.Counts:
        return self._recorder.scene.counts

    @property
    def _through(self) -> bool:
        """Whether every order is published, reserved and notified."""
        return self._counts == overview.Counts(self._orders, 0, self._orders, self._orders)

    @property
    def _moved(self) -> bool:
        """Whether the heir owns the victim's partitions."""
        return self._moved_s < inf

    def _late(self, customer: Customer) -> bool:
        """Whether the effects take too long after the last order."""
        if customer.done:
            self._late_s = min(self._late_s, self._recorder.now_s + self._session_s + _CATCH_UP_S)
        return self._recorder.now_s > self._late_s

    def _reserved_s(self) -> float:
        """Return when all orders were first seen to be reserved."""
        samples = self._recorder.act.samples
        return next(sample.at_s for sample in samples if sample.value("reservations") == self._orders)

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes.started if node.name == name)

    def _begin(self, number: int) -> None:
        """Begin an act: at once, or with `keys` when one is pressed."""
        if self._keys:
            self._recorder.ask(narration.prompt(number))
            self._keys.forget()
            self._watch_until(self._keys.pressed)
        self._recorder.begin(number)

    def _watch_until(self, over: Callable[[], bool]) -> None:
        while not over():
            self._look()
            time.sleep(_LOOK_EVERY_S)
        self._look()

    def _look(self) -> None:
        self._recorder.look(self._settings, self._databases, self._admin, self.nodes.started)

    def _hear(self, line: str) -> None:
        """Record a node's line; the heir's line about the victim's partitions is the rebalance."""
        self._recorder.tell(line)
        if not (line.startswith(f"[{_HEIR}]") and self._killed_s < inf) or self._moved:
            return
        owned, act = self._node(_VICTIM).assignment, self._recorder.act
        if set(owned) <= set(self._node(_HEIR).assignment):
            self._moved_s = self._recorder.now_s
            act.faults = [replace(fault, end_s=self._moved_s) for fault in act.faults]
            act.marks.append(Mark(self._moved_s, f"rebalance: {narration.listed(owned)} move to {_HEIR}"))


def _owns(partitions: list[int]) -> Callable[[Node], bool]:
    return lambda node: node.assignment == partitions


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < inf else "—"
