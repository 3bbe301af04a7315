"""Traces: when they are made, what the standard variables do, and which spans there are."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBasedTraceIdRatio, Sampler

from brewctl import tracing
from brewctl.delivery.broker import HeldError, Outcome, Place, Record, RefusedError
from brewctl.delivery.broker.traced_producer import TracedProducer, traced
from brewctl.roles.order import traced as traced_calls
from brewctl.tracing.sdk import ByLinks
from brewctl.tracing.spans import Tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


def traces(memory: InMemorySpanExporter, sampler: Sampler | None = None) -> Tracing:
    provider = TracerProvider(sampler=ByLinks(sampler or DEFAULT_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider, node="order-1")


def contexts(count: int, *, flags: str = "01") -> list[bytes]:
    return [f"00-{TRACE}-{number:016x}-{flags}".encode() for number in range(1, count + 1)]


def program(text: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, with no variable of OpenTelemetry's but these."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", text],
        env={**own, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def kept(env: Mapping[str, str], then: str = "print('goes on')") -> subprocess.CompletedProcess[str]:
    """Run something as a role is run, with its log."""
    text = f"""
from brewctl import log, tracing
log.configure(node="order-1")
with tracing.kept("order-service", node="order-1"):
    {then}
"""
    return program(text, env)


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_say_whether_traces_are_made(environ: dict[str, str], wanted: bool) -> None:
    assert tracing.wanted(environ) is wanted


def test_without_them_nothing_of_the_library_is_imported_and_nothing_is_wrapped() -> None:
    text = """
import sys
import brewctl.cli.main, brewctl.roles.order, brewctl.roles.consumer, brewctl.roles.publisher
from brewctl import tracing
from brewctl.delivery.inbox import traced_inbox
from brewctl.delivery.broker.traced_producer import traced
from brewctl.roles.order import traced as calls
with tracing.kept("order-service", node="order-1"):
    producer = object()
    assert traced(producer) is producer
    assert calls.interceptors("/") == []
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    ran = program(text)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_without_the_extra_one_line_says_how_to_get_it_and_the_role_goes_on() -> None:
    block = "import sys; sys.modules['opentelemetry'] = None\n"
    ran = program(
        block
        + "from brewctl import log, tracing\nlog.configure()\n"
        + "with tracing.kept('order-service', node='order-1'):\n    print(tracing.in_force())",
        ENDPOINT,
    )
    assert ran.stdout == "None\n"
    (line,) = ran.stderr.splitlines()
    assert "traces_off" in line
    assert "pip install 'brewctl[otel]'" in line


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "max_queue_size must be a positive integer"),
        ({"OTEL_SPAN_LINK_COUNT_LIMIT": "some"}, "OTEL_SPAN_LINK_COUNT_LIMIT"),
    ],
)
def test_a_setting_that_can_not_be_used_is_one_line_and_the_role_goes_on(env: dict[str, str], said: str) -> None:
    ran = kept({**ENDPOINT, **env})
    assert (ran.returncode, ran.stdout) == (0, "goes on\n")
    (line,) = ran.stderr.splitlines()
    assert "traces_off" in line
    assert said in line


def test_a_sampler_that_is_not_known_is_one_line_and_the_default_is_used() -> None:
    ran = kept({**ENDPOINT, "OTEL_TRACES_SAMPLER": "sometimes"}, "print(tracing.in_force() is not None)")
    assert ran.stdout == "True\n"
    (line,) = ran.stderr.splitlines()
    assert "traces_setting" in line
    assert "sometimes" in line


def test_what_can_not_be_read_of_the_headers_is_not_shown() -> None:
    ran = kept({**ENDPOINT, "OTEL_EXPORTER_OTLP_HEADERS": "planted-secret"})
    assert ran.stdout == "goes on\n"
    (line,) = ran.stderr.splitlines()
    assert "OTEL_EXPORTER_OTLP_HEADERS is not name=value" in line
    assert "planted-secret" not in line


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20planted-secret%0Amore"},  # refused by the HTTP client
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http//user:planted-secret@127.0.0.1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:planted-secret@127.0.0.1:1"},
    ],
)
def test_a_secret_of_the_settings_is_in_no_line(env: dict[str, str]) -> None:
    then = "tracing.in_force().call('s/Create', {}).end(0)"
    ran = kept({**ENDPOINT, **env, "OTEL_BSP_SCHEDULE_DELAY": "50"}, then)
    (line,) = ran.stderr.splitlines()
    assert "traces_" in line
    assert "planted-secret" not in line
    assert "***" in line or "Max retries" in line


def test_a_provider_that_is_there_is_used_and_left_to_its_owner() -> None:
    then = "print(tracing.in_force()._provider is provider, provider.get_tracer('x').start_span('y').is_recording())"
    text = f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from brewctl import tracing
provider = TracerProvider()
trace.set_tracer_provider(provider)
with tracing.kept("order-service", node="order-1"):
    {then}
"""
    ran = program(text, ENDPOINT)
    assert (ran.stdout, ran.stderr) == ("True True\n", "")


def test_neither_yes_nor_no_for_one_span_an_event_is_a_usage_error(tmp_path: Path) -> None:
    env = {"BREW_TRACE_PARENT": "perhaps", "BREW_HOME": str(tmp_path)}
    ran = program("import sys; sys.argv = ['brewctl', 'publish']; from brewctl.cli.main import main; main()", env)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line == "brewctl: BREW_TRACE_PARENT is 'perhaps': set it to 1 for one span an event, below its order's"


def test_the_resource_is_the_role_and_the_node_unless_the_variables_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from brewctl.tracing import sdk  # noqa: PLC0415

    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    said = sdk._resource("inventory", "inventory-1").attributes
    assert (said["service.name"], said["service.instance.id"]) == ("inventory", "inventory-1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "stock")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.namespace=brew")
    said = sdk._resource("inventory", "inventory-1").attributes
    assert (said["service.name"], said["service.instance.id"]) == ("stock", "inventory-1")
    assert (said["deployment.environment.name"], said["service.namespace"]) == ("test", "brew")


@pytest.mark.parametrize("flags", ["01", "00"])
def test_a_call_is_a_child_of_its_caller_and_keeps_trace_and_sampled_flag(
    memory: InMemorySpanExporter, flags: str
) -> None:
    span = traces(memory).call("brew.orders.v1.OrderService/Create", {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"})
    span.end(0)
    _, trace, own, sampled = span.traceparent.split("-")
    assert (trace, sampled) == (TRACE, flags)
    assert own != PARENT
    assert [(each.name, f"{each.parent.span_id:016x}") for each in finished(memory)] == (
        [("brew.orders.v1.OrderService/Create", PARENT)] if flags == "01" else []
    )


@pytest.mark.parametrize("said", [None, "rubbish", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_call_without_a_caller_begins_a_trace(memory: InMemorySpanExporter, said: str | None) -> None:
    span = traces(memory).call("s/Create", {"traceparent": said} if said else {})
    span.end(14, fault="UNAVAILABLE")
    (done,) = finished(memory)
    assert done.parent is None
    assert f"{done.context.trace_id:032x}" in span.traceparent
    assert dict(done.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "s",
        "rpc.method": "Create",
        "rpc.grpc.status_code": 14,
        "error.type": "UNAVAILABLE",
    }
    assert not done.status.is_ok


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


def finished(memory: InMemorySpanExporter) -> list[Any]:
    return list(memory.get_finished_spans())


def links(span: ReadableSpan) -> list[tuple[str, int]]:
    return [(f"{link.context.trace_id:032x}", link.context.span_id) for link in span.links]
