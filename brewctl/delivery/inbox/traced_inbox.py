"""Makes a span for each try of a batch, with links to the spans that created its events.

With BREW_TRACE_PARENT each event has a process span of its own instead, as a child of the span that created it. A
handler runs inside the span: spans that it makes are children of that.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from brewctl import tracing
from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Record
from brewctl.delivery.broker.traced_producer import created_in
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.events import Event
from brewctl.delivery.inbox.batch import Batch, Identity, ReadEvent
from brewctl.delivery.inbox.failures import FailingError
from brewctl.delivery.inbox.inbox import Inbox

if TYPE_CHECKING:
    from brewctl.tracing.spans import BatchSpans, EventSpan, Tracing

_PARKED, _BEHIND, _DEAD = "parked", "parked_behind", "dead_lettered"


def opened(settings: Settings, pool: Pool, downstream: Downstream, *, node: str) -> Inbox:
    """Return the inbox of a downstream: one that makes spans if traces are on."""
    if traces := tracing.in_force():
        form = _OfEvents if traces.by_parent else _OfBatches
        return form(traces, settings, pool, downstream, node=node)
    return Inbox(settings, pool, downstream, node=node)


class _OfBatches(Inbox):
    """An inbox with a span for each try of a batch."""

    def __init__(self, traces: "Tracing", settings: Settings, pool: Pool, downstream: Downstream, *, node: str) -> None:
        super().__init__(settings, pool, downstream, node=node)
        self._traces = traces
        self._kafka_group = registry.kafka_group(settings, downstream)
        self._span: BatchSpans | None = None

    def apply(self, batch: Batch) -> None:
        """Apply a batch inside a span."""
        records = [record for record, _ in (*batch.readable.values(), *batch.dead)]
        if not records:  # all are of other types
            super().apply(batch)
            return
        created = [created_in(record) for record in records]
        self._span = self._traces.processes(records[0].topic, created, group=self._kafka_group)
        failure: BaseException | None = None
        try:
            with self._span.current():
                super().apply(batch)
        except Later:
            self._note("later", {})
            raise
        except BaseException as error:
            failure = _reason(error)
            raise
        finally:
            self._span.end(failure)

    def _note(self, name: str, attributes: Mapping[str, str | int]) -> None:
        assert self._span is not None
        self._span.event(name, attributes)

    def _park(self, read: ReadEvent, reason: str, *, tries: int) -> int:
        if parked := super()._park(read, reason, tries=tries):
            self._note(_PARKED, {**_place(read[0]), "brew.outbox_id": read[1].outbox_id, "brew.reason": reason})
        return parked

    def _commit_part(self, part: Sequence[ReadEvent], repeats: Any) -> tuple[int, int]:
        effects, parked = super()._commit_part(part, repeats)
        if parked:
            self._note(_BEHIND, {"brew.events": parked})
        return effects, parked

    def _bury(self, batch: Batch) -> None:
        before = list(batch.dead)
        try:
            super()._bury(batch)
        finally:
            for each in before:
                if each not in batch.dead:
                    self._note(_DEAD, {**_place(each[0]), "brew.reason": each[1]})


class _OfEvents(Inbox):
    """An inbox with a span for each event, and for each call of a handler: an event that is retried has several."""

    def __init__(self, traces: "Tracing", settings: Settings, pool: Pool, downstream: Downstream, *, node: str) -> None:
        if handler := downstream.handler:

            def in_span(event: Event[Any], tx: Any) -> None:
                with self._around(event):
                    handler(event, tx)

            downstream = replace(downstream, handler=in_span)
        super().__init__(settings, pool, downstream, node=node)
        self._traces = traces
        self._kafka_group = registry.kafka_group(settings, downstream)
        self._reads: dict[Identity, ReadEvent] = {}  # the events of this try
        self._began_ns = 0
        self._spans: dict[Identity, EventSpan] = {}

    def apply(self, batch: Batch) -> None:
        """Apply a batch with a span for each event."""
        self._reads, self._began_ns = dict(batch.readable), time.time_ns()
        dead = list(batch.dead)
        failure: BaseException | None = None
        try:
            super().apply(batch)
        except Later:
            raise
        except BaseException as error:
            failure = _reason(error)
            raise
        finally:
            for identity in self._reads:
                span = self._of(identity)
                if failure and identity in batch.readable:
                    span.fail(failure)
                span.end()
            self._spans.clear()
            for record, reason in dead:
                self._end_dead(record, reason, buried=(record, reason) not in batch.dead)

    def _of(self, identity: Identity) -> "EventSpan":
        """Return the span of an event: that of its handler's call, else one that began with the try."""
        if (span := self._spans.get(identity)) is None:
            span = self._spans[identity] = self._begin(*self._reads[identity], began_ns=self._began_ns)
        return span

    def _begin(self, record: Record, event: Event[Any] | None, *, began_ns: int) -> "EventSpan":
        said = _place(record) | ({"messaging.message.id": event.id} if event and event.id else {})
        return self._traces.processes_one(
            record.topic, created_in(record), said, group=self._kafka_group, began_ns=began_ns
        )

    @contextlib.contextmanager
    def _around(self, event: Event[Any]) -> Iterator[None]:
        identity = event.outbox_id, event.id
        if before := self._spans.pop(identity, None):
            before.end()  # of a call whose transaction was rolled back
        span = self._spans[identity] = self._begin(*self._reads[identity], began_ns=time.time_ns())
        with span.around():
            yield

    def _park(self, read: ReadEvent, reason: str, *, tries: int) -> int:
        if parked := super()._park(read, reason, tries=tries):
            self._of((read[1].outbox_id, read[1].id)).event(_PARKED, {"brew.reason": reason})
        return parked

    def _end_dead(self, record: Record, reason: str, *, buried: bool) -> None:
        span = self._begin(record, None, began_ns=self._began_ns)
        if buried:
            span.event(_DEAD, {"brew.reason": reason})
        span.end()


def _place(record: Record) -> dict[str, str | int]:
    return {"messaging.destination.partition.id": str(record.partition), "messaging.kafka.offset": record.offset}


def _reason(error: BaseException) -> BaseException:
    """Return the error of a try: the first event's, where effects of several events failed."""
    return error.__cause__ if isinstance(error, FailingError) and error.__cause__ else error
