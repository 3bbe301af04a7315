"""Sets up OpenTelemetry's SDK by its standard variables: resource, sampler, exporter; and ends it in bounded time."""

import importlib
import ipaddress
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from brewctl.errors import BrewError
from brewctl.installed import require
from brewctl.tracing import TracesOffError, lines
from brewctl.tracing.spans import Tracing

# How long the last spans may take after the drain. The exporter's `shutdown` alone may wait for 10 s and more.
FLUSH_S = 2.0
ASSUMED = {"opentelemetry.sdk.trace:TracerProvider": ("_span_limits",)}
_HTTP, _GRPC = "http/protobuf", "grpc"


def opened(
    service: str, *, node: str, environ: Mapping[str, str], by_parent: bool
) -> tuple[Tracing, Callable[[], None]]:
    """Set traces up for this process. Return the maker of its spans, and a function that sends the last ones.

    An existing provider, such as that of `opentelemetry-instrument`, is used unchanged, and not ended here. Raises
    TracesOffError, ImportError, and what the SDK raises for variables that it can't use.
    """
    lines.take_over()
    try:
        require("opentelemetry-sdk", ASSUMED)
    except BrewError as error:
        raise TracesOffError(error.message, hint=error.hint) from error
    there = trace.get_tracer_provider()
    if isinstance(there, TracerProvider):
        return Tracing(there, node=node, by_parent=by_parent), lambda: None
    # Without the SDK's own hook at the process's exit, which would wait for half a minute.
    provider = TracerProvider(resource=_resource(service, node), shutdown_on_exit=False)
    if isinstance(provider.sampler, ParentBased):
        provider.sampler = ByLinks(provider.sampler)
    provider.add_span_processor(BatchSpanProcessor(_exporter(environ)))
    trace.set_tracer_provider(provider)  # for the instrumentation of a user's handlers
    return Tracing(provider, node=node, by_parent=by_parent), lambda: _close(provider)


class ByLinks(Sampler):
    """Samples a span if one of its links is sampled, and leaves spans without links to `base`.

    Otherwise, with 1 % of the calls sampled, a batch with a sampled call would have a chance of 1 % of its own.
    """

    def __init__(self, base: Sampler) -> None:
        self._base = base

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide whether a span is sampled."""
        if links and not trace.get_current_span(parent_context).get_span_context().is_valid:
            if any(link.context.trace_flags.sampled for link in links):
                return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
            return SamplingResult(Decision.DROP)
        return self._base.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Return the sampler's name."""
        return f"ByLinks{{{self._base.get_description()}}}"


def _resource(service: str, node: str) -> Resource:
    said = OTELResourceDetector().detect().attributes
    own = {"service.name": service, "service.instance.id": node}
    return Resource.create({name: value for name, value in own.items() if name not in said})


def _exporter(environ: Mapping[str, str]) -> SpanExporter:
    names = [name.strip().lower() for name in environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",") if name.strip()]
    if names and "otlp" not in names:
        said = ",".join(names)[:80]
        raise TracesOffError(f"OTEL_TRACES_EXPORTER is {said!r}", hint="here there is otlp, and none")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _HTTP
    match protocol.strip().lower():
        case "http/protobuf":
            return _over("http", session=_direct(environ))
        case "grpc":
            return _over("grpc", channel_options=(("grpc.enable_http_proxy", 0),) if _is_near(environ) else None)
    raise TracesOffError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol[:80]!r}", hint=f"use {_HTTP} or {_GRPC}")


def _over(protocol: str, **options: Any) -> SpanExporter:
    module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter")
    exporter: SpanExporter = module.OTLPSpanExporter(**options)
    return exporter


def _direct(environ: Mapping[str, str]) -> Any:
    """Return a session without a proxy for an endpoint on this machine, which a proxy can't reach. Else None."""
    if not _is_near(environ):
        return None
    requests = importlib.import_module("requests")
    session = requests.Session()
    session.trust_env = False
    return session


def _is_near(environ: Mapping[str, str]) -> bool:
    named = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
    host = urlsplit(named if "//" in named else f"//{named}").hostname or "localhost"
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _close(provider: TracerProvider) -> None:
    """Send the last spans, for at most FLUSH_S seconds. A thread goes on after that, and ends with the process."""
    thread = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
    thread.start()
    thread.join(FLUSH_S)
    if thread.is_alive():
        lines.lost(f"the last spans were not taken within {FLUSH_S:g} s")
