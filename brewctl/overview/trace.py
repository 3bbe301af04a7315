"""The life of one order: its rows in PostgreSQL, and its dead letters in Kafka.

orders ─► outbox ─► topic ─► processed_events + effect, for each group
                       └───► dead letters
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from brewctl.delivery import events
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.dead_letter import Letter
from brewctl.errors import BrewError
from brewctl.overview.effects import OrderEffect
from brewctl.overview.replicas import NodeRow


@dataclass(frozen=True)
class Order:
    """An order. `committed_at` is None if PostgreSQL keeps no commit times, or if the order is cancelled."""

    id: UUID
    tenant_id: str
    customer_id: str
    amount_cents: int
    currency: str
    status: str
    created_at: datetime  # by the order node's clock; all other times in PostgreSQL are by PostgreSQL's clock
    committed_at: datetime | None
    dropped_below: int = 0  # retention's watermark, if it may have dropped this order's outbox rows


@dataclass(frozen=True)
class TracedEvent:
    """An outbox row of the order. Its place is None until it is published, or if an older version published it."""

    id: int
    topic: str
    payload: bytes
    type: str
    created_at: datetime
    published_at: datetime | None
    publisher_node: str | None
    kafka_partition: int | None
    kafka_offset: int | None
    failed_at: datetime | None
    failure: str | None
    attempts: int

    @property
    def cancels(self) -> bool:
        """Whether it cancels the order."""
        return self.type == events.ORDER_CANCELLED

    @property
    def reason(self) -> str:
        """Why the order is cancelled; empty if no reason was given or the payload can't be read."""
        try:
            return events.parse_cancelled(self.payload).reason
        except events.UnreadableError:
            return ""


@dataclass(frozen=True)
class Parked:
    """An event that a group parked. `outcome`: redriven, dropped, or empty while it is parked."""

    id: int
    group: str
    outbox_id: int
    reason: str
    parked_at: datetime
    outcome: str
    apart: bool = False  # whether it is in a downstream's own database

    @property
    def name(self) -> str:
        """Its name in commands."""
        return parking.name(self.id, self.group, apart=self.apart)


@dataclass(frozen=True)
class Waiting:
    """An event that a group with lanes has taken and not handled yet. `node`: where its handler runs, else empty."""

    group: str
    outbox_id: int
    taken_at: datetime
    attempts: int
    failure: str
    node: str


@dataclass(frozen=True)
class DedupRow:
    """A row of processed_events: a group handled an event, and skipped `duplicates` later deliveries."""

    group: str
    outbox_id: int
    processed_at: datetime
    duplicates: int
    duplicate_at: datetime  # the last time


@dataclass(frozen=True)
class Step:
    """One step in the life of an order. Fields that do not apply are empty."""

    at: datetime
    # created, committed or written, published, set aside, a downstream's verb, cancelled, handled, skipped, died
    what: str
    detail: str
    node: str = ""
    group: str = ""
    outbox_id: int | None = None
    partition: int | None = None
    offset: int | None = None

    def after_ms(self, before: "Step") -> float:
        """Return the milliseconds since another step; negative if the clocks, or the order of commits, differ."""
        return (self.at - before.at).total_seconds() * 1000


@dataclass(frozen=True)
class Life:
    """All that PostgreSQL and Kafka know of an order at one moment."""

    order: Order
    events: Sequence[TracedEvent]
    dedup: Sequence[DedupRow]
    effects: Sequence[OrderEffect]
    nodes: Sequence[NodeRow]
    downstreams: Sequence[Downstream]
    letters: Sequence[Letter] = ()
    parked: Sequence[Parked] = ()
    waiting: Sequence[Waiting] = ()
    away: Mapping[str, BrewError] = field(default_factory=dict)  # group → why its database could not be asked

    @property
    def trace_id(self) -> str:
        """The id of the trace that created the order; empty if its event can't be read."""
        try:
            return events.parse_order(self.events[0].payload).trace_id
        except (IndexError, events.UnreadableError):
            return ""

    @property
    def dropped(self) -> bool:
        """Whether retention has dropped its first outbox row, which it does once every group has processed it."""
        return bool(self.order.dropped_below) and all(event.type != events.ORDER_CREATED for event in self.events)

    @property
    def finished(self) -> bool:
        """Whether all events are published, and all downstreams have handled them and have their effects."""
        handled = {(row.group, row.outbox_id) for row in self.dedup}
        found = {effect.group for effect in self.effects}
        return (
            (bool(self.events) or self.dropped)
            and all(event.published_at for event in self.events)
            and all(
                (each.group, event.id) in handled and (each.group in found or not each.done)
                for event in self.events
                for each in self.takers(event)
            )
        )

    def takers(self, event: TracedEvent) -> list[Downstream]:
        """Return the downstreams that handle an event. The others skip it."""
        return [downstream for downstream in self.downstreams if event.type in downstream.events]

    @property
    def done(self) -> list[str]:
        """The words for the effects of all downstreams, such as reserved; a downstream without a word is named."""
        if self.cancelled:
            return [downstream.undo or downstream.did for downstream in self.downstreams]
        return [downstream.did for downstream in self.downstreams]

    @property
    def cancelled(self) -> bool:
        """Whether the order is cancelled, as its events say."""
        return any(event.cancels for event in self.events)

    @property
    def took_ms(self) -> float:
        """The time from the order's creation, or its cancel, to its last publish or effect, in milliseconds."""
        first = next((event.created_at for event in self.events if event.cancels), self.order.created_at)
        marks = [event.published_at for event in self.events if event.published_at]
        marks += [effect.created_at for effect in self.effects]
        if self.cancelled:
            marks += [row.processed_at for row in self.dedup]
        return (max(marks, default=first) - first).total_seconds() * 1000

    def steps(self) -> list[Step]:
        """Return the steps by time. The creation is first, because its time is by another clock."""
        trace = f"trace {self.trace_id}, " if self.trace_id else ""
        created = Step(self.order.created_at, "created", f"{trace}tenant {self.order.tenant_id}")
        later = [*self._written(), *self._sent(), *self._handled(), *self._died()]
        return [created, *sorted(later, key=lambda step: step.at)]

    def _written(self) -> Iterator[Step]:
        committed_at = self.order.committed_at
        for number, event in enumerate(self.events):
            detail = f"outbox row {event.id}"
            if event.cancels:
                why = f": {event.reason}" if event.reason else ""
                yield Step(event.created_at, "cancelled", f"{detail}{why}", outbox_id=event.id)
            elif number == 0 and committed_at:  # later rows have commits of their own
                yield Step(committed_at, "committed", f"with {detail}", outbox_id=event.id)
            else:
                yield Step(event.created_at, "written", f"{detail}, in its transaction", outbox_id=event.id)

    def _sent(self) -> Iterator[Step]:
        for event in self.events:
            if event.published_at:
                place = "" if event.kafka_offset is None else f" {event.kafka_partition}@{event.kafka_offset}"
                yield Step(
                    event.published_at,
                    "published",
                    f"by {event.publisher_node} to {event.topic}{place}",
                    node=event.publisher_node or "",
                    outbox_id=event.id,
                    partition=event.kafka_partition,
                    offset=event.kafka_offset,
                )
            elif event.failed_at:
                yield Step(event.failed_at, "set aside", f"{event.failure}", outbox_id=event.id)

    def _handled(self) -> Iterator[Step]:
        verbs = {downstream.group: downstream.verb for downstream in self.downstreams}
        for effect in self.effects:
            detail = f"by {effect.node}, group {effect.group}" if effect.node else f"by group {effect.group}"
            yield Step(effect.created_at, verbs.get(effect.group, "done"), detail, effect.node, effect.group)
        shown = {effect.group for effect in self.effects}
        undo = {downstream.group: downstream.undo for downstream in self.downstreams}
        types = {event.id: event.type for event in self.events}
        had: dict[str, set[str]] = {}  # types of events, by group
        for row in self.dedup:
            known, event_type = had.setdefault(row.group, set()), types.get(row.outbox_id, "")
            detail = f"outbox row {row.outbox_id} by group {row.group}"
            if event_type in known:  # an order has each effect once, however many events
                detail += ": the order has its effect"
                yield Step(row.processed_at, "skipped", detail, group=row.group, outbox_id=row.outbox_id)
            elif event_type == events.ORDER_CANCELLED and undo.get(row.group):
                by = f"by group {row.group}"
                yield Step(row.processed_at, undo[row.group], by, group=row.group, outbox_id=row.outbox_id)
            elif known or row.group not in shown:  # no effect shows this event
                detail += f", {event_type}"
                yield Step(row.processed_at, "handled", detail, group=row.group, outbox_id=row.outbox_id)
            known.add(event_type)
            if row.duplicates:
                times = "once more" if row.duplicates == 1 else f"{row.duplicates} times more"
                detail = f"{times} by group {row.group}, which had it in processed_events"
                yield Step(row.duplicate_at, "skipped", detail, group=row.group, outbox_id=row.outbox_id)

        for each in self.waiting:
            detail = f"outbox row {each.outbox_id} by group {each.group}"
            detail += f", whose handler runs on {each.node}" if each.node else ", and waits for its handler"
            detail += f"; failed {each.attempts} times: {each.failure}" if each.failure else ""
            yield Step(each.taken_at, "taken", detail, each.node, each.group, each.outbox_id)

    def _died(self) -> Iterator[Step]:
        for each in self.parked:
            became = f", {each.outcome}" if each.outcome else ""
            detail = f"{each.name} of group {each.group}{became}: {each.reason}"
            yield Step(each.parked_at, "parked", detail, group=each.group, outbox_id=each.outbox_id)
        for letter in self.letters:
            became = {
                "": "open",
                "redriven": "redriven" + ("" if not letter.new_place else " to {}@{}".format(*letter.new_place)),
            }.get(letter.outcome, letter.outcome)
            detail = f"letter {letter.id} of group {letter.group}, {became}: {letter.reason}"
            yield Step(letter.written_at, "died", detail, group=letter.group, partition=letter.partition,
                       offset=letter.offset)  # fmt: skip


def word(downstream: Downstream, event: TracedEvent) -> str:
    """Return the word for a downstream's effect of an event, such as reserved or released."""
    return downstream.undo if event.cancels and downstream.undo else downstream.verb
