"""Traces of the story, kept in memory: one from a call to every effect, by links, or by parents where asked for."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON

import brewctl
from brewctl import tracing
from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Pool
from brewctl.delivery.downstream import Downstream, Later, Reject
from brewctl.delivery.events import Event
from brewctl.delivery.inbox import traced_inbox
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.delivery.inbox.node import consume
from brewctl.lifecycle import beside, wait_until
from brewctl.proto import orders_pb2, orders_pb2_grpc
from brewctl.proto.orders_pb2 import OrderCreated
from brewctl.roles import inventory, notifications
from brewctl.roles import order as order_role
from brewctl.tracing.sdk import ByLinks
from brewctl.tracing.spans import Tracing
from tests.conftest import Rig
from tests.integration.grpc_tools import PARENT, TRACE, order
from tests.integration.reading import read_topic

SERVICE = "brew.orders.v1.OrderService"


class Kept:
    """Spans in memory, and what makes them."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ByLinks(DEFAULT_ON), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))

    def traces(self, *, by_parent: bool = False) -> Tracing:
        return Tracing(self.provider, node="test", by_parent=by_parent)

    def named(self, name: str) -> list[Any]:
        return [span for span in self.memory.get_finished_spans() if span.name == name]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def said(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def linked(span: Any) -> list[str]:
    return [said(link.context) for link in span.links]


def own(span: Any) -> str:
    return said(span.context)


def parent(span: Any) -> str | None:
    return said(span.parent) if span.parent else None


def rows(rig: Rig) -> list[tuple[str, str, str | None]]:
    """Type, trace id and traceparent of each outbox row."""
    return rig.connection.execute("SELECT event_type, trace_id, traceparent FROM outbox ORDER BY id").fetchall()


@contextlib.contextmanager
def story(rig: Rig, capsys: pytest.CaptureFixture[str], *, consumers: bool = True) -> Iterator[Any]:
    """An order-service and its consumers, each in a thread; yields a stub once it listens."""

    stop = threading.Event()

    def serve() -> None:
        order_role.run(rig.settings, stop, node="order-1", host="127.0.0.1", port=0)

    def consumer_of(found: Downstream) -> Callable[[], None]:
        return lambda: consume(rig.settings, found, stop, node=f"{found.group}-1")

    found = (inventory.DOWNSTREAM, notifications.DOWNSTREAM) if consumers else ()
    with beside({"order": serve, **{each.group: consumer_of(each) for each in found}}, stop):
        heard: list[str] = []

        def listens() -> bool:
            heard.append(capsys.readouterr().out)
            return "listening on" in "".join(heard)

        wait_until("the order-service listens", listens, timeout_s=60)
        address = next(line for line in "".join(heard).splitlines() if "listening on" in line).split()[-1]
        with grpc.insecure_channel(address) as channel:
            yield orders_pb2_grpc.OrderServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("by_parent", [False, True])
def test_one_trace_leads_from_a_call_to_every_effect(
    rig: Rig, kept: Kept, capsys: pytest.CaptureFixture[str], by_parent: bool
) -> None:
    topic = rig.settings.topic
    with tracing.using(kept.traces(by_parent=by_parent)), story(rig, capsys) as stub:
        made = stub.Create(order(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),), timeout=30)
        rig.wait("both effects", lambda: rig.counts().notifications == rig.counts().reservations == 1)
        stub.Cancel(orders_pb2.CancelRequest(order_id=made.order_id), timeout=30)
        wait_until("both consumers have the cancel", lambda: len(kept.named(f"process {topic}")) == 4, timeout_s=60)
    (create,), (cancel,) = kept.named(f"{SERVICE}/Create"), kept.named(f"{SERVICE}/Cancel")
    assert parent(create) == f"00-{TRACE}-{PARENT}-01"
    assert parent(cancel) is None
    created, cancelled = own(create), own(cancel)
    # The row, the record and the payload have the trace of the span that the links lead to.
    assert rows(rig) == [
        (events.ORDER_CREATED, TRACE, created),
        (events.ORDER_CANCELLED, cancelled.split("-")[1], cancelled),
    ]
    records = read_topic(rig.settings)
    assert [dict(record.headers)["traceparent"].decode() for record in records] == [created, cancelled]
    assert dict(records[0].headers)["trace-id"].decode() == TRACE
    assert OrderCreated.FromString(records[0].value or b"").trace_id == TRACE
    sends, processes = kept.named(f"send {topic}"), kept.named(f"process {topic}")
    assert [(parent(span), linked(span)) for span in sends] == [(None, [created]), (None, [cancelled])]
    if by_parent:
        assert sorted((parent(span) or "", span.attributes["messaging.consumer.group.name"]) for span in processes) == (
            sorted((context, group) for context in (created, cancelled) for group in ("inventory", "notifications"))
        )
        assert all(not span.links for span in processes)
    else:
        assert all(span.parent is None for span in processes)
        assert sorted((linked(span), span.attributes["messaging.consumer.group.name"]) for span in processes) == sorted(
            ([context], group) for context in (created, cancelled) for group in ("inventory", "notifications")
        )
    assert all(span.kind.name == "CONSUMER" for span in processes)
    assert rig.brewctl("trace", made.order_id).stdout.count(TRACE) >= 1


def test_a_call_that_is_not_sampled_leaves_no_span_and_its_trace_goes_on(
    rig: Rig, kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracing.using(kept.traces()), story(rig, capsys) as stub:
        stub.Create(order(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),), timeout=30)
        rig.wait("both effects", lambda: rig.counts().notifications == rig.counts().reservations == 1)
    assert kept.memory.get_finished_spans() == ()
    ((_, trace_id, traceparent),) = rows(rig)
    assert trace_id == TRACE
    assert traceparent is not None
    assert (traceparent.split("-")[1], traceparent.split("-")[3]) == (TRACE, "00")


def test_every_call_has_a_span_that_says_how_it_ended(rig: Rig, kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    with tracing.using(kept.traces()), story(rig, capsys, consumers=False) as stub:
        made = stub.Create(order(), timeout=30)
        stub.Get(orders_pb2.GetRequest(order_id=made.order_id), timeout=30)
        for call, request in (
            (stub.Create, order(amount_cents=-1)),
            (stub.Get, orders_pb2.GetRequest(order_id=str(uuid.uuid4()))),
        ):
            with pytest.raises(grpc.RpcError):
                call(request, timeout=30)
        with psycopg.connect(rig.settings.database_url) as holder:
            holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(grpc.RpcError):
                stub.Create(order(), timeout=0.5)
            holder.rollback()
        wait_until("all five spans", lambda: len(calls(kept)) == 5, timeout_s=60)
    assert sorted(calls(kept), key=str) == [
        ("Create", 0, None, "UNSET"),
        ("Create", 3, None, "UNSET"),
        ("Create", 4, "DEADLINE_EXCEEDED", "ERROR"),
        ("Get", 0, None, "UNSET"),
        ("Get", 5, None, "UNSET"),
    ]
    assert len(rows(rig)) == 1


def calls(kept: Kept) -> list[tuple[Any, ...]]:
    spans: list[Any] = [span for span in kept.memory.get_finished_spans() if span.kind.name == "SERVER"]
    return [
        (
            span.attributes["rpc.method"],
            span.attributes["rpc.grpc.status_code"],
            span.attributes.get("error.type"),
            span.status.status_code.name,
        )
        for span in spans
    ]


def context(number: int) -> str:
    return f"00-{TRACE}-{number:016x}-01"


def record(number: int, order_id: str = "", *, key: str = "", value: bytes | None = None) -> Record:
    order_id = order_id or str(uuid.uuid4())
    key = key or events.aggregate_id(order_id)
    headers = events.headers_for(
        number, key, events.ORDER_CREATED, node="order-1", event_id=uuid.uuid4(), seq=1, traceparent=context(number)
    )
    payload = OrderCreated(order_id=order_id).SerializeToString() if value is None else value
    return Record("topic", key.encode(), payload, headers, 0, number)


class Handled:
    """A downstream whose handler notes the current span, makes one of its own, and fails where it is told to."""

    def __init__(self, kept: Kept, *, batch: bool = False, attempts: int = 3) -> None:
        self.current: list[str] = []
        self.errors: dict[int, Exception] = {}
        self._tracer = kept.provider.get_tracer("its own")
        form: dict[str, Any] = {"batch": self.all} if batch else {"handler": self.one}
        self.downstream = Downstream("handled", **form, events=(events.ORDER_CREATED,), attempts=attempts)

    def one(self, event: Event[Any], tx: psycopg.Connection[Any]) -> None:
        self.current.append(own_of_current())
        with self._tracer.start_as_current_span("query"):
            tx.execute("SELECT 1")
        if error := self.errors.get(event.outbox_id):
            raise error

    def all(self, batch: Sequence[Event[Any]], tx: psycopg.Connection[Any]) -> None:
        for event in batch:
            self.one(event, tx)


def own_of_current() -> str:
    return said(trace.get_current_span().get_span_context())


def opened(rig: Rig, pool: Pool, kept: Kept, downstream: Downstream, *, by_parent: bool = False) -> Inbox:
    with tracing.using(kept.traces(by_parent=by_parent)):
        return traced_inbox.opened(rig.settings, pool, downstream, node="n")


@pytest.mark.parametrize("batch", [False, True])
def test_a_handlers_own_spans_are_below_the_batchs(rig: Rig, pool: Pool, kept: Kept, batch: bool) -> None:
    handled = Handled(kept, batch=batch)
    opened(rig, pool, kept, handled.downstream).handle([record(1), record(2)])
    (span,) = kept.named("process topic")
    assert linked(span) == [context(1), context(2)]
    assert handled.current == [own(span)] * 2
    assert [parent(query) for query in kept.named("query")] == [own(span)] * 2
    assert own_of_current() != own(span)  # it is current for the handler alone


def test_three_hundred_records_are_linked_to_each_once(rig: Rig, pool: Pool, kept: Kept) -> None:
    opened(rig, pool, kept, inventory.DOWNSTREAM).handle([record(number) for number in range(1, 301)])
    spans = kept.named("process topic")
    assert sorted(link for span in spans for link in linked(span)) == [context(number) for number in range(1, 301)]
    assert sum(span.attributes["messaging.batch.message_count"] for span in spans) == 300
    assert max(len(span.links) for span in spans) <= 128


def test_each_try_of_a_batch_has_a_span_with_why_it_failed_and_what_was_parked(
    rig: Rig, pool: Pool, kept: Kept
) -> None:
    handled = Handled(kept, attempts=2)
    handled.errors[2] = ValueError("no beans")
    opened(rig, pool, kept, handled.downstream).handle([record(1), record(2)])
    first, second = kept.named("process topic")
    assert (first.attributes["error.type"], first.status.description) == ("ValueError", "no beans")
    assert linked(first) == [context(1), context(2)]
    assert linked(second) == [context(2)]
    assert second.status.is_unset
    ((parked,),) = [span.events for span in (second,)]
    assert parked.name == "parked"
    assert parked.attributes["brew.outbox_id"] == 2
    assert parked.attributes["messaging.kafka.offset"] == 2
    assert "no beans" in parked.attributes["brew.reason"]


def test_what_waits_behind_a_parked_event_is_an_event_of_its_batch(rig: Rig, pool: Pool, kept: Kept) -> None:
    handled = Handled(kept)
    order_id = str(uuid.uuid4())
    handled.errors[1] = Reject("never")
    inbox = opened(rig, pool, kept, handled.downstream)
    inbox.handle([record(1, order_id)])
    inbox.handle([record(2, order_id)])
    assert [[each.name for each in span.events] for span in kept.named("process topic")] == [
        ["parked"],
        ["parked_behind"],
    ]


@pytest.mark.parametrize("by_parent", [False, True])
def test_a_dead_letter_is_an_event_of_its_span(rig: Rig, pool: Pool, kept: Kept, by_parent: bool) -> None:
    inbox = opened(rig, pool, kept, inventory.DOWNSTREAM, by_parent=by_parent)
    inbox.handle([record(1), record(2, value=b"\xff")])
    inbox.close()
    spans = kept.named("process topic")
    ((span, dead),) = [(span, each) for span in spans for each in span.events]
    assert dead.name == "dead_lettered"
    assert "payload is not an OrderCreated" in dead.attributes["brew.reason"]
    if by_parent:
        assert [parent(each) for each in spans] == [context(1), context(2)]
        assert parent(span) == context(2)
    else:
        assert linked(span) == [context(1), context(2)]


def test_later_is_no_error(rig: Rig, pool: Pool, kept: Kept) -> None:
    handled = Handled(kept)
    handled.errors[1] = Later(1)
    with pytest.raises(Later):
        opened(rig, pool, kept, handled.downstream).handle([record(1)])
    (span,) = kept.named("process topic")
    assert span.status.is_unset
    assert [each.name for each in span.events] == ["later"]


def test_a_span_an_event_is_below_what_created_it_and_around_its_handler(rig: Rig, pool: Pool, kept: Kept) -> None:
    handled = Handled(kept)
    opened(rig, pool, kept, handled.downstream, by_parent=True).handle([record(1), record(2)])
    spans = kept.named("process topic")
    assert [parent(span) for span in spans] == [context(1), context(2)]
    assert handled.current == [own(span) for span in spans]
    assert [parent(query) for query in kept.named("query")] == [own(span) for span in spans]
    assert {span.context.trace_id for span in kept.named("query")} == {int(TRACE, 16)}
    first = spans[0].attributes
    assert first["messaging.kafka.offset"] == 1
    assert uuid.UUID(first["messaging.message.id"])
    assert "messaging.batch.message_count" not in first


def test_an_event_that_is_tried_again_has_a_span_a_try_and_says_that_it_is_parked(
    rig: Rig, pool: Pool, kept: Kept
) -> None:
    handled = Handled(kept, attempts=2)
    handled.errors[1] = ValueError("no beans")
    opened(rig, pool, kept, handled.downstream, by_parent=True).handle([record(1)])
    spans = kept.named("process topic")
    assert [parent(span) for span in spans] == [context(1)] * 2
    assert [span.attributes["error.type"] for span in spans] == ["ValueError"] * 2
    assert [[each.name for each in span.events] for span in spans] == [[], ["parked"]]


def test_a_handler_that_is_called_again_in_halves_of_its_batch_has_a_span_a_call(
    rig: Rig, pool: Pool, kept: Kept
) -> None:
    handled = Handled(kept)
    handled.errors[2] = Reject("never")
    opened(rig, pool, kept, handled.downstream, by_parent=True).handle([record(1), record(2)])
    spans = kept.named("process topic")
    assert sorted((parent(span), span.attributes.get("error.type")) for span in spans) == [
        (context(1), None),
        (context(1), None),
        (context(2), "Reject"),
        (context(2), "Reject"),
    ]
    assert sorted(own(span) for span in spans) == sorted(handled.current)


@pytest.mark.parametrize("by_parent", [False, True])
def test_an_event_that_a_handler_adds_was_created_in_its_span(
    rig: Rig, pool: Pool, kept: Kept, by_parent: bool
) -> None:
    def add(event: Event[Any], tx: psycopg.Connection[Any]) -> None:
        brewctl.add_event(tx, aggregate_id=event.key, event_type="order.priced", payload=b"1")
        brewctl.add_event(tx, aggregate_id=event.key, event_type="order.priced", payload=b"1", trace_id="theirs")

    downstream = Downstream("pricing", handler=add, events=(events.ORDER_CREATED,))
    inbox = opened(rig, pool, kept, downstream, by_parent=by_parent)
    with tracing.using(kept.traces()):
        inbox.handle([record(1)])
    inbox.handle([record(2)])  # no traces are wanted: as ever
    (first, second) = kept.named("process topic")
    added, *others = rows(rig)
    assert added == ("order.priced", own(first).split("-")[1], own(first))
    assert [traceparent for _, _, traceparent in others] == [None] * 3
    assert others[0][1] == "theirs"
    assert own(second)


@pytest.mark.parametrize("by_parent", [False, True])
def test_a_try_that_the_database_ends_has_its_error(rig: Rig, pool: Pool, kept: Kept, by_parent: bool) -> None:
    inbox = opened(rig, pool, kept, inventory.DOWNSTREAM, by_parent=by_parent)
    rig.connection.execute("ALTER TABLE inventory_reservations RENAME TO away")
    with pytest.raises(Exception, match="inventory_reservations"):
        inbox.apply(inbox.read([record(1)]))
    (span,) = kept.named("process topic")
    assert span.attributes["error.type"] == "UndefinedTable"
    rig.connection.execute("ALTER TABLE away RENAME TO inventory_reservations")


@pytest.mark.parametrize("by_parent", [False, True])
def test_events_of_other_types_have_no_span(rig: Rig, pool: Pool, kept: Kept, by_parent: bool) -> None:
    headers = [("event-type", b"payment.taken"), ("traceparent", context(1).encode())]
    inbox = opened(rig, pool, kept, inventory.DOWNSTREAM, by_parent=by_parent)
    inbox.handle([Record("topic", b"k", b"v", headers, 0, 0)])
    assert (kept.memory.get_finished_spans(), inbox.tally.others) == ((), 1)
