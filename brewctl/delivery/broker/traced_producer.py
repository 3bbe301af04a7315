"""A producer with traces: one span for each send and topic, linked to the spans that created the records."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from brewctl.delivery.broker import Outcome, Place, Producer, Record, RefusedError
from brewctl.tracing import in_force

if TYPE_CHECKING:
    from brewctl.tracing.spans import Tracing


def traced(producer: Producer) -> Producer:
    """Return the producer with traces, or unchanged if traces are off."""
    return TracedProducer(traces, producer) if (traces := in_force()) else producer


def created_in(record: Record) -> bytes | None:
    """Return the traceparent header of a record: the span that created its event. It is never changed."""
    for name, value in reversed(record.headers):  # traceparent is the last header
        if name == "traceparent":
            return value
    return None


class TracedProducer(Producer):
    """Sends with another producer, and records spans."""

    def __init__(self, traces: "Tracing", producer: Producer) -> None:
        self._traces = traces
        self._producer = producer

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        """Send as the other producer does, in one span for each topic."""
        of_topic: dict[str, list[int]] = {}
        for number, record in enumerate(records):
            of_topic.setdefault(record.topic, []).append(number)
        batches = [
            (self._traces.sends(topic, [created_in(records[number]) for number in numbers]), numbers)
            for topic, numbers in of_topic.items()
        ]
        try:
            outcomes = self._producer.send(records, timeout_s=timeout_s)
        except BaseException as error:
            for batch, _ in batches:
                batch.end(error)
            raise
        for batch, numbers in batches:
            for number in numbers:
                if isinstance(refused := outcomes[number], RefusedError):
                    outbox_id = dict(records[number].headers).get("outbox-id", b"").decode()
                    batch.event("refused", {"brew.outbox_id": outbox_id, "brew.reason": str(refused)})
            batch.end_each([_error(outcomes[number]) for number in numbers])
        return outcomes

    def close(self) -> None:
        """Close the other producer."""
        self._producer.close()

    def abandon(self) -> None:
        """Abandon the other producer."""
        self._producer.abandon()


def _error(outcome: Outcome) -> Exception | None:
    return None if isinstance(outcome, Place) else outcome
