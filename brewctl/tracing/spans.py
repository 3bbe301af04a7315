"""The spans of calls, sends and processed batches, by OpenTelemetry's semantic conventions for RPC and messaging."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()
# A traceparent as an outbox row has it: only the fields of version 0.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_EVEN = frozenset(b"02468ace")  # the last digit of a traceparent that is not sampled
_ROOT = Context()
_LONGEST = 200


class Part(NamedTuple):
    """One span of a batch, and the range of the batch's messages that it is for."""

    span: Span
    first: int
    end: int


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, provider: TracerProvider, *, node: str, by_parent: bool = False) -> None:
        """`by_parent`: each event gets a process span of its own, as a child of its order's span."""
        self.by_parent = by_parent
        self._node = node
        self._provider = provider
        self._tracer = provider.get_tracer("brewctl", version("brewctl"))
        self._most_links = max(1, provider._span_limits.max_links or 1)  # noqa: SLF001 - not public

    def call(self, method: str, metadata: Mapping[str, str]) -> "Called":
        """Begin the span of a call, as a child of its caller's. It is the creation context of the call's event."""
        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        caller = _W3C.extract(metadata, context=_ROOT)
        return Called(self._tracer.start_span(method, caller, SpanKind.SERVER, attributes))

    def current_traceparent(self) -> str | None:
        """Return the traceparent of this thread's current span; None where it has none."""
        context = trace.get_current_span().get_span_context()
        return _traceparent(context) if context.is_valid else None

    def sends(self, topic: str, created: Sequence[bytes | None]) -> "BatchSpans":
        """Begin the span of records that are sent together. `created`: each record's traceparent."""
        return self._batch(SpanKind.PRODUCER, "send", topic, created, {})

    def processes(self, topic: str, created: Sequence[bytes | None], *, group: str) -> "BatchSpans":
        """Begin the span of one try of records that were polled together. `created`: each record's traceparent."""
        return self._batch(SpanKind.CONSUMER, "process", topic, created, {"messaging.consumer.group.name": group})

    def processes_one(
        self, topic: str, created: bytes | None, attributes: Mapping[str, str | int], *, group: str, began_ns: int
    ) -> "EventSpan":
        """Begin the span of one event, as a child of the span that created it."""
        context = _context(created)
        span = self._tracer.start_span(
            f"process {topic}",
            trace.set_span_in_context(NonRecordingSpan(context), _ROOT) if context else _ROOT,
            SpanKind.CONSUMER,
            {**self._said("process", topic), "messaging.consumer.group.name": group, **attributes},
            start_time=began_ns,
        )
        return EventSpan(span)

    def _batch(
        self, kind: SpanKind, operation: str, topic: str, created: Sequence[bytes | None], more: Mapping[str, str]
    ) -> "BatchSpans":
        """Begin one span, or several if one would have more links than a span may.

        Only sampled contexts are linked. If there are contexts and none is sampled, the span is not sampled either.
        """
        parts: list[tuple[int, int, list[Link]]] = []
        links: list[Link] = []
        first, known = 0, False
        for number, traceparent in enumerate(created):
            # Unsampled contexts are skipped unread, once one valid context was seen: mostly there are many of them.
            if not traceparent or (known and traceparent[-1] in _EVEN):
                continue
            if (context := _context(traceparent)) is None:
                continue
            known = True
            if not context.trace_flags.sampled:
                continue
            if len(links) == self._most_links:
                parts.append((first, number, links))
                first, links = number, []
            links.append(Link(context))
        parts.append((first, len(created), links))
        if known and not links:
            return BatchSpans([Part(self._unsampled(), 0, len(created))])
        attributes = {**self._said(operation, topic), **more}
        began_ns = time.time_ns()
        return BatchSpans(
            [
                Part(
                    self._tracer.start_span(
                        f"{operation} {topic}",
                        _ROOT,
                        kind,
                        {**attributes, "messaging.batch.message_count": end - first},
                        links,
                        start_time=began_ns,
                    ),
                    first,
                    end,
                )
                for first, end, links in parts
            ]
        )

    def _said(self, operation: str, topic: str) -> dict[str, str | int]:
        return {
            "messaging.system": "kafka",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": topic,
            "messaging.client.id": self._node,
        }

    def _unsampled(self) -> Span:
        """Return a span that is not recorded, nor are its children."""
        ids = self._provider.id_generator
        context = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False, TraceFlags(TraceFlags.DEFAULT))
        return NonRecordingSpan(context)


class Called:
    """The span of a call."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        # The outbox row and the record keep it unchanged, with its sampled flag.
        self.traceparent = _traceparent(span.get_span_context())

    def end(self, code: int, *, fault: str = "") -> None:
        """End the span with gRPC's status code. `fault`: the code's name, if the server is at fault."""
        self._span.set_attribute("rpc.grpc.status_code", code)
        if fault:
            failed(self._span, fault)
        self._span.end()


class BatchSpans:
    """The spans of one batch, nearly always a single one."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def current(self) -> AbstractContextManager[None]:
        """Make its span this thread's current one, the parent of spans that a handler makes in the block."""
        return _current(self.parts[0].span)

    def event(self, name: str, attributes: Mapping[str, str | int]) -> None:
        """Add an event to the span, about some of its messages."""
        self.parts[0].span.add_event(name, attributes)

    def end_each(self, errors: Sequence[BaseException | None]) -> None:
        """End all spans, each with the first error of its own messages."""
        for part in self.parts:
            if error := next(filter(None, errors[part.first : part.end]), None):
                failed(part.span, type(error).__qualname__, str(error))
            part.span.end()

    def end(self, error: BaseException | None = None) -> None:
        """End all spans, with the error if there was one."""
        for part in self.parts:
            if error is not None:
                failed(part.span, type(error).__qualname__, str(error))
            part.span.end()


class EventSpan:
    """The span of one event."""

    __slots__ = ("_ended_ns", "_failed", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._ended_ns: int | None = None
        self._failed = False

    @contextmanager
    def around(self) -> Iterator[None]:
        """Make it this thread's current span during a handler's call. The span's end is the end of that call."""
        try:
            with _current(self._span):
                yield
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self._ended_ns = time.time_ns()

    def event(self, name: str, attributes: Mapping[str, str | int]) -> None:
        """Add an event to the span."""
        self._span.add_event(name, attributes)

    def fail(self, error: BaseException) -> None:
        """Note an error on the span, unless it has one."""
        if not self._failed:
            self._failed = True
            failed(self._span, type(error).__qualname__, str(error))

    def end(self) -> None:
        """End the span."""
        self._span.end(self._ended_ns)


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Make a span the current one of this thread."""
    token = attach(trace.set_span_in_context(span, _ROOT))
    try:
        yield
    finally:
        detach(token)


def failed(span: Span, kind: str, words: str = "") -> None:
    """Note an error on a span."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, " ".join(words.split())[:_LONGEST] or None)


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context(traceparent: bytes | None) -> SpanContext | None:
    """Return the span context of a traceparent; None if it is absent or invalid."""
    if traceparent is None or not (match := _TRACEPARENT.fullmatch(traceparent)):
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    context = SpanContext(trace_id, span_id, True, TraceFlags(flags))
    return context if context.is_valid else None
