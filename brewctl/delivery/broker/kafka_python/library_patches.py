"""Patches for faults of the library that no setting avoids. Importing this module applies them to the whole process.

Durations: the library measures sessions, heartbeats, backoffs and the age of metadata by the wall clock. When that
clock steps back, nothing is sent until it has caught up; when it steps forward, requests in flight time out.

Connecting: each client asks a broker for its version one to three times, and sleeps 0.1 s each time before it looks for
the answer. Only brokers before 0.10 need that pause, and they are not supported here.

Metadata: the library uses a version of the request that creates a missing topic, with one partition, on brokers with
auto.create.topics.enable.

Metrics: the library measures all its work in Python, and brewctl does not read the results. They took a sixth of the
CPU time of sending a single record.
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

# Modules that only measure durations. Records' timestamps are made in `kafka.record`, which is not one of them.
_MEASURING: tuple[ModuleType, ...] = (
    *(base, buffer, client_async, cluster, conn, consumer, fetcher, group, heartbeat, kafka, kafka_metric),
    *(record_accumulator, sender, sensor),
)


class _SteadyTime:
    """The part of `time` that these modules use, on a clock that can't be set."""

    # Times begin at about the epoch, because the library takes small numbers for "never".
    _epoch = time.time() - time.monotonic()
    sleep = staticmethod(time.sleep)

    @classmethod
    def time(cls) -> float:
        """Return seconds since about the epoch. They never go back."""
        return cls._epoch + time.monotonic()


class _WithoutPause(_SteadyTime):
    """For the module `conn`: its only sleep is the one before a broker's answer to the question for its version."""

    sleep = staticmethod(lambda _seconds: None)


def _ask_only(topics: Sequence[str] | None) -> Any:
    return MetadataRequest_v4(topics, False)


for _module in _MEASURING:
    _module.time = _SteadyTime  # type: ignore[attr-defined]
conn.time = _WithoutPause
# By index: the library uses version 0, only for brokers that are not supported here, and version 1.
client_async.MetadataRequest = [MetadataRequest_v0, _ask_only]
sensor.Sensor.record = lambda *_arguments, **_named: None
