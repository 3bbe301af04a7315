"""Makes a span for each call of a handler in a lane, with a link to the span that created its event.

With BREW_TRACE_PARENT that span is its parent instead. Spans that the handler makes are children of its call's span.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from brewctl import tracing
from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker.traced_producer import created_in
from brewctl.delivery.downstream import Downstream, Later
from brewctl.delivery.inbox.waiting_events import WaitingEvent

Around = Callable[[WaitingEvent], contextlib.AbstractContextManager[object]]


def around(settings: Settings, downstream: Downstream) -> Around:
    """Return a context manager for each call: a span if traces are on, else nothing."""
    traces = tracing.in_force()
    if traces is None:
        return contextlib.nullcontext
    group = registry.kafka_group(settings, downstream)

    @contextlib.contextmanager
    def in_span(waiting: WaitingEvent) -> Iterator[None]:
        record = waiting.record
        said: dict[str, str | int] = {
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "brew.outbox_id": waiting.outbox_id,
            "brew.attempts": waiting.attempts,
        }
        if waiting.event_id:
            said["messaging.message.id"] = waiting.event_id
        if traces.by_parent:
            one = traces.processes_one(record.topic, created_in(record), said, group=group, began_ns=time.time_ns())
            try:
                with one.around():
                    yield
            finally:
                one.end()
            return
        batch = traces.processes(record.topic, [created_in(record)], group=group)
        batch.event("called", said)
        failure: BaseException | None = None
        try:
            with batch.current():
                yield
        except Later:
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            batch.end(failure)

    return in_span
