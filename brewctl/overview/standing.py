"""Where an unfinished order stands, and the command that moves it on.

The answer is right also while everything runs, because the questions go against the flow, as in `verify`: first the
groups' offsets, then dead letters, and PostgreSQL last.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from brewctl.config import Settings
from brewctl.delivery import events, registry
from brewctl.delivery.broker import Place, open_admin
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.dead_letter import Letter
from brewctl.delivery.repair.dead_letters import Filter, open_dead_letters
from brewctl.delivery.schema import homes
from brewctl.errors import BrewError
from brewctl.overview import consumer_groups, reading, trace
from brewctl.overview.consumer_groups import GroupView
from brewctl.overview.trace import Life, Order, TracedEvent

_VERIFY = "brewctl verify"
# A consumer's clock, which dates its dead letters, may be behind the clock of the order's node by so much.
_CLOCKS = timedelta(hours=1)


@dataclass(frozen=True)
class KafkaView:
    """Kafka's answers: the names of all topics, the groups, and the order's dead letters."""

    names: frozenset[str]
    groups: Mapping[str, GroupView]
    letters: Sequence[Letter]


@dataclass(frozen=True)
class Standing:
    """Where an order stands, and the command that moves it on; no command if it only needs time, or if none helps."""

    text: str
    command: str = ""
    stuck: bool = False  # it will not move by itself


@dataclass(frozen=True)
class OrderView:
    """An order's life, and where it stands if it is unfinished. `unknown`: a server's error, if one failed."""

    life: Life
    standings: Sequence[Standing] = ()
    unknown: BrewError | None = None


def look(settings: Settings, connection: BoundedConnection, order_id: UUID) -> OrderView:
    """Look at an order in both servers; only in PostgreSQL if Kafka fails. Raises what `reading.read` raises."""
    where = homes.of(settings)
    order = reading.read(connection, order_id, where).order
    try:
        topics = _ask(settings, connection, order)
    except BrewError as error:
        life = reading.read(connection, order_id, where)
        return OrderView(life, judge(settings, life, error), error)
    life = replace(reading.read(connection, order_id, where), letters=topics.letters)
    return OrderView(life, judge(settings, life, topics), next(iter(life.away.values()), None))


def judge(settings: Settings, life: Life, kafka: KafkaView | BrewError) -> list[Standing]:
    """Return where each unfinished event of an order stands. `kafka`: Kafka's answers, or why there are none."""
    return list(_Judge(settings, life, kafka).standings())


def _ask(settings: Settings, connection: BoundedConnection, order: Order) -> KafkaView:
    with open_admin(settings) as admin:
        groups = {view.name: view for view in consumer_groups.groups(admin, settings)}
        names = frozenset(admin.topics())
    key = events.aggregate_id(str(order.id)).encode()
    with open_dead_letters(settings, connection, since=order.created_at - _CLOCKS) as letters:
        found = sorted(letters.find(Filter(key=key), settled=True), key=lambda letter: letter.written_at)
    return KafkaView(names, groups, found)


class _Judge:
    def __init__(self, settings: Settings, life: Life, kafka: KafkaView | BrewError) -> None:
        self._settings = settings
        self._life = life
        self._kafka = kafka
        self._there = {node.name for node in life.nodes if node.there}
        self._silent = {node.name for node in life.nodes if not node.there}

    def standings(self) -> Iterator[Standing]:
        if self._life.finished:
            return
        if not self._life.events:
            yield Standing("it has no outbox row: it will not be published", _VERIFY, stuck=True)
        waiting = [event for event in self._life.events if not event.published_at]
        if waiting:
            head = self._unpublished(waiting[0])
            yield head
            for event in waiting[1:]:
                yield Standing(f"outbox row {event.id} waits behind row {waiting[0].id}", stuck=head.stuck)
        handled = {(row.group, row.outbox_id) for row in self._life.dedup}
        effects = {effect.group for effect in self._life.effects}
        parked = {(each.group, each.outbox_id): each for each in self._life.parked}
        for event in self._life.events:
            for downstream in self._life.takers(event) if event.published_at else ():
                group = downstream.group
                known = parked.get((group, event.id))
                if known and known.outcome != "redriven":
                    yield _parked(known, downstream, event)
                elif (group, event.id) not in handled:
                    yield self._unhandled(event, downstream)
                elif downstream.done and group not in effects and not event.cancels:
                    text = f"not {trace.word(downstream, event)}: group {group} has handled it, and its effect is gone"
                    yield Standing(text, _VERIFY, stuck=True)

    def _unpublished(self, event: TracedEvent) -> Standing:
        row = f"outbox row {event.id}"
        if event.failed_at:
            times = "once" if event.attempts == 1 else f"{event.attempts} times"
            text = f"{row} is set aside, refused {times}: {event.failure}"
            return Standing(text, f"brewctl outbox retry {event.id}", stuck=True)
        if isinstance(self._kafka, KafkaView) and event.topic not in self._kafka.names:
            other = "" if event.topic == self._settings.topic else f" --topic {shlex.quote(event.topic)}"
            return Standing(f"{row} waits: kafka has no topic {event.topic}", f"brewctl topic create{other}")
        publishers = [node.name for node in self._life.nodes if node.publishes and node.there]
        if not publishers:
            serving = any(node.role == "order" and node.there for node in self._life.nodes)
            command = _start("publisher" if serving else "order")
            return Standing(f"{row} waits: no node runs that would publish it", command)
        if isinstance(self._kafka, BrewError):
            return Standing(f"{row} waits: {self._kafka.message}")
        return Standing(f"{row} is to be published by {' or '.join(publishers)}")

    def _unhandled(self, event: TracedEvent, downstream: Downstream) -> Standing:
        if away := self._life.away.get(downstream.group):
            done = f"{trace.word(downstream, event)} by group {downstream.group}"
            return Standing(f"whether it is {done} is not known: {away.message}")
        return self._to_come(event, downstream)

    def _to_come(self, event: TracedEvent, downstream: Downstream) -> Standing:
        undone = f"not {trace.word(downstream, event)} by group {downstream.group}"
        group = registry.kafka_group(self._settings, downstream)
        if isinstance(self._kafka, BrewError):
            return Standing(f"{undone}, and how far it is can't be known: {self._kafka.message}")
        letters = [letter for letter in self._kafka.letters if letter.group == group and _of(letter, event)]
        if still_open := next((letter for letter in letters if not letter.outcome), None):
            text = f"{undone}: it is the dead letter {still_open.id}, {still_open.reason}"
            return Standing(text, f"brewctl dlq redrive {still_open.id}", stuck=True)
        if letters and letters[-1].outcome == "dropped":
            return Standing(f"{undone}, and never will be: its dead letter {letters[-1].id} was dropped", stuck=True)
        if event.topic != self._settings.topic:
            command = f"brewctl trace {self._life.order.id} --topic {shlex.quote(event.topic)}"
            return Standing(f"{undone}: it was published to {event.topic}, not to {self._settings.topic}", command)
        place = letters[-1].new_place if letters else _place(event)
        if place is None:
            return Standing(f"{undone}: where its record is was not kept when it was published", _VERIFY)
        return self._ahead(undone, place, self._kafka.groups[group], f"brewctl outbox republish {event.id}")

    def _ahead(self, undone: str, place: Place, group: GroupView, again: str) -> Standing:
        """Return where a group is before or after the place of a record."""
        where = f"partition {place.partition}, offset {place.offset}"
        progress = next((each for each in group.partitions if each.partition == place.partition), None)
        if progress is None or not progress.first <= place.offset < progress.end:
            return Standing(f"{undone}: its record is no more in the topic, at {where}", again, stuck=True)
        before = place.offset - progress.position
        if before < 0:
            return Standing(f"{undone}, which has passed it at {where}: lost", again, stuck=True)
        # A member commits its offsets only once a second, so it may have read on.
        most = "at most " if group.members else ""
        ahead = f"it comes after {most}{before} record{'s' if before > 1 else ''}" if before else "it is next"
        coming = f"{undone}: {ahead} in partition {place.partition}"
        if not group.members:
            return Standing(
                f"{coming}, and the group has no member", _start(registry.started_as(self._settings, group.name))
            )
        if not progress.owner:
            return Standing(f"{coming}, which has no owner: the group is {group.state}")
        if progress.owner in self._silent:
            others = any(member.client_id in self._there for member in group.members)
            session = f"within {self._settings.limits.session_s:g} s"
            text = f"{coming}, whose owner {progress.owner} is silent: kafka gives it to another {session}"
            return Standing(text, "" if others else _start(registry.started_as(self._settings, group.name)))
        return Standing(f"{coming}, which {progress.owner} reads")


def _parked(parked: trace.Parked, downstream: Downstream, event: TracedEvent) -> Standing:
    undone = f"not {trace.word(downstream, event)} by group {downstream.group}"
    if parked.outcome:
        return Standing(f"{undone}, and never will be: {parked.name}, which was parked, was dropped", stuck=True)
    return Standing(f"{undone}: it is parked, {parked.reason}", f"brewctl dlq redrive {parked.name}", stuck=True)


def _start(role: str) -> str:
    return f"brewctl start {role}"


def _place(event: TracedEvent) -> Place | None:
    if event.kafka_partition is None or event.kafka_offset is None:
        return None
    return Place(event.kafka_partition, event.kafka_offset)


def _of(letter: Letter, event: TracedEvent) -> bool:
    """Return whether a dead letter is of this event: by the event's place, or by the id in its header.

    Either may fail: the header may be the unreadable part, and the dead record may be a second copy of the event.
    """
    at = (event.topic, event.kafka_partition, event.kafka_offset)
    return letter.died_at == at or dict(letter.headers).get("outbox-id") == str(event.id).encode()
