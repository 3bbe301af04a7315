"""Traces: when they are made, what the standard variables do, and which spans there are."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from brewctl import tracing
from tests.unit import spans
from tests.unit.spans import TRACE, finished, traces

memory = spans.memory

PARENT = "00f067aa0ba902b7"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


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
