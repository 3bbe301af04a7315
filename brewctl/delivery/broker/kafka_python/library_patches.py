"""Faults of the client library that no setting mends. Importing this module mends them for the whole process.

Durations: the library measures sessions, heartbeats, backoffs and the age of metadata by the wall clock. Where that
steps back, nothing is sent until it has caught up; where it steps forward, what is in flight has timed out.

Connecting: each client asks a broker for its version one to three times, and sleeps 0.1 s each time before it looks for
the answer. It does so for brokers of before 0.10, which are too old for us. It then waits for the answer anyway.

Metadata: the library asks in a version in which a question about a topic that is not there creates it, with one
partition, on brokers that create topics by themselves.

Metrics: the library measures everything that it does, in Python, and nobody reads it. Of a lone record's way to Kafka
that was a sixth of the CPU.
"""

import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from kafka import client_async, cluster, conn
from kafka.consumer import fetcher, group
from kafka.coordinator import base, consumer, heartbeat
from kafka.metrics import kafka_metric
from kafka.metrics.stats import sensor
from kafka.producer import buffer, kafka, record_accumulator, sender
from kafka.protocol.metadata import MetadataRequest_v0, MetadataRequest_v4

# Modules whose times are all durations. The records' own timestamps are made in `kafka.record`, which is not here.
_MEASURING: tuple[ModuleType, ...] = (
    *(base, buffer, client_async, cluster, conn, consumer, fetcher, group, heartbeat, kafka, kafka_metric),
    *(record_accumulator, sender, sensor),
)


class _SteadyTime:
    """What these modules use of `time`, by a clock that nobody sets."""

    # The library takes small numbers for "never".
    _epoch = time.time() - time.monotonic()
    sleep = staticmethod(time.sleep)

    @classmethod
    def time(cls) -> float:
        """Return seconds since about the epoch, which only grow."""
        return cls._epoch + time.monotonic()


class _WithoutPause(_SteadyTime):
    """For the module with the question for a broker's version, whose one sleep that is."""

    sleep = staticmethod(lambda _seconds: None)


def _ask_only(topics: Sequence[str] | None) -> Any:
    return MetadataRequest_v4(topics, False)


for _module in _MEASURING:
    _module.time = _SteadyTime  # type: ignore[attr-defined]
conn.time = _WithoutPause
# The library uses versions 0 (only of brokers that are too old for us) and 1.
client_async.MetadataRequest = [MetadataRequest_v0, _ask_only]
sensor.Sensor.record = lambda *_arguments, **_named: None
