"""A tracing that keeps its spans in memory."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler

from brewctl.tracing.sdk import ByLinks
from brewctl.tracing.spans import Tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


def traces(memory: InMemorySpanExporter, sampler: Sampler | None = None) -> Tracing:
    provider = TracerProvider(sampler=ByLinks(sampler or DEFAULT_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider, node="order-1")


def finished(memory: InMemorySpanExporter) -> list[Any]:
    return list(memory.get_finished_spans())
