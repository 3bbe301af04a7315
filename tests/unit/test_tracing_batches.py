"""Spans of batches and of sends: which link to what, and which are sampled."""

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from brewctl import tracing
from brewctl.delivery.broker import HeldError, Outcome, Place, Record, RefusedError
from brewctl.delivery.broker.traced_producer import TracedProducer, traced
from brewctl.roles.order import traced as traced_calls
from tests.unit import spans
from tests.unit.spans import TRACE, finished, traces

memory = spans.memory


def contexts(count: int, *, flags: str = "01") -> list[bytes]:
    return [f"00-{TRACE}-{number:016x}-{flags}".encode() for number in range(1, count + 1)]


def test_a_batch_is_one_span_that_links_to_what_created_its_messages(memory: InMemorySpanExporter) -> None:
    traces(memory).sends("orders", [*contexts(2), None]).end()
    (span,) = finished(memory)
    assert (span.name, span.kind.name, span.parent) == ("send orders", "PRODUCER", None)
    assert span.context.trace_id != int(TRACE, 16)
    assert links(span) == [(TRACE, 1), (TRACE, 2)]
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.client.id": "order-1",
        "messaging.batch.message_count": 3,
    }


def test_more_links_than_a_span_may_have_are_several_spans_and_none_is_lost(memory: InMemorySpanExporter) -> None:
    traces(memory).processes("orders", contexts(300), group="inventory").end()
    spans = finished(memory)
    assert [len(span.links) for span in spans] == [128, 128, 44]
    assert [(span.attributes or {})["messaging.batch.message_count"] for span in spans] == [128, 128, 44]
    assert [link for span in spans for link in links(span)] == [(TRACE, number) for number in range(1, 301)]
    assert all(span.dropped_links == 0 for span in spans)


def test_what_is_not_sampled_is_neither_linked_nor_recorded(memory: InMemorySpanExporter) -> None:
    made = traces(memory)
    made.sends("orders", contexts(3, flags="00")).end()
    assert finished(memory) == []
    made.sends("orders", [*contexts(3, flags="00"), *contexts(1)]).end()
    (span,) = finished(memory)
    assert links(span) == [(TRACE, 1)]
    assert (span.attributes or {})["messaging.batch.message_count"] == 4


def test_a_batch_is_sampled_with_its_orders_whatever_the_ratio(memory: InMemorySpanExporter) -> None:
    made = traces(memory, ParentBasedTraceIdRatio(0.0))
    made.sends("orders", contexts(1)).end()
    assert len(finished(memory)) == 1
    made.sends("orders", [None]).end()  # of nobody's trace: the ratio decides
    assert len(finished(memory)) == 1


def test_below_a_batch_that_is_not_sampled_nothing_is(memory: InMemorySpanExporter) -> None:
    made = traces(memory)
    batch = made.processes("orders", contexts(1, flags="00"), group="inventory")
    with batch.current():
        made._provider.get_tracer("a handler's own").start_span("query").end()
    batch.end()
    assert finished(memory) == []


@pytest.mark.parametrize("raw", [b"", b"\xff" * 55, b"00-" + b"g" * 52, contexts(1)[0] + b"-more", contexts(1)[0][:-1]])
def test_a_header_that_is_no_traceparent_is_no_link(memory: InMemorySpanExporter, raw: bytes) -> None:
    traces(memory).sends("orders", [raw]).end()
    (span,) = finished(memory)
    assert span.links == ()


class Scripted:
    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = outcomes
        self.sent: list[Record] = []

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:  # noqa: ARG002
        self.sent = list(records)
        return list(self.outcomes)


def record(number: int, *, topic: str = "orders", raw: bytes | None = None) -> Record:
    headers = [("outbox-id", str(number).encode()), ("traceparent", raw or contexts(number)[-1])]
    return Record(topic, b"key", b"value", headers)


def send(memory: InMemorySpanExporter, records: list[Record], *outcomes: Outcome) -> Any:
    other: Any = Scripted(*outcomes)
    assert TracedProducer(traces(memory), other).send(records, timeout_s=1) == list(outcomes)
    return other


def test_a_send_hands_records_on_as_they_are(memory: InMemorySpanExporter) -> None:
    records = [record(1), record(2)]
    assert send(memory, records, Place(0, 0), Place(0, 1)).sent == records
    (span,) = finished(memory)
    assert links(span) == [(TRACE, 1), (TRACE, 2)]
    assert span.status.is_ok or span.status.is_unset


def test_each_topic_has_its_own_send(memory: InMemorySpanExporter) -> None:
    send(memory, [record(1), record(2, topic="payments"), record(3)], Place(0, 0), Place(0, 0), Place(0, 1))
    assert {span.name: links(span) for span in finished(memory)} == {
        "send orders": [(TRACE, 1), (TRACE, 3)],
        "send payments": [(TRACE, 2)],
    }


def test_a_refused_record_is_an_event_and_the_error_of_its_send(memory: InMemorySpanExporter) -> None:
    send(memory, [record(1), record(2), record(3)], Place(0, 0), RefusedError("too large"), HeldError("behind it"))
    (span,) = finished(memory)
    assert [(each.name, dict(each.attributes or {})) for each in span.events] == [
        ("refused", {"brew.outbox_id": "2", "brew.reason": "too large"})
    ]
    assert (span.attributes or {})["error.type"] == "RefusedError"
    assert (span.status.is_ok, span.status.description) == (False, "too large")


def test_a_send_that_raises_ends_its_span(memory: InMemorySpanExporter) -> None:
    class Broken:
        def send(self, _records: object, *, timeout_s: float) -> list[Outcome]:
            raise RuntimeError(str(timeout_s))

    broken: Any = Broken()
    with pytest.raises(RuntimeError):
        TracedProducer(traces(memory), broken).send([record(1)], timeout_s=1)
    assert [(each.attributes or {})["error.type"] for each in finished(memory)] == ["RuntimeError"]


def test_in_force_roles_take_the_traced_form(memory: InMemorySpanExporter) -> None:
    producer: Any = Scripted()
    with tracing.using(traces(memory)):
        assert isinstance(traced(producer), TracedProducer)
        assert len(traced_calls.interceptors("/")) == 1
    assert traced(producer) is producer


def links(span: ReadableSpan) -> list[tuple[str, int]]:
    return [(f"{link.context.trace_id:032x}", link.context.span_id) for link in span.links]
