"""The metrics, on prometheus-client. Imported only with `--http`.

Times are in seconds. Each label has few values, whatever clients send. No label names the node, because the scraper
adds `instance`.
"""

import os
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from brewctl import metrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# In seconds: from a commit on this machine to an outage of minutes.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# Bytes reserved for each file of a process: more than all labels need.
_ROOM = 256 * 1024

# No second series for each counter with its time of creation: it is not used.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Instruments:
    """The metrics of one process, in a registry of their own. Each is made when a part of the role asks for it."""

    content_type = CONTENT_TYPE

    def __init__(self, *, role: str, version: str, shared: bool) -> None:
        """`shared`: keep the numbers in files, which another process reads."""
        self._registry = CollectorRegistry()
        if shared:
            _make_room(Path(os.environ[metrics.SHARED]))
        else:
            _about_process(self._registry, role=role, version=version)
        self.outbox = cache(lambda: OutboxInstruments(self._registry))
        self.calls = cache(lambda: Calls(self._registry))
        self.inbox = cache(lambda consumer: InboxInstruments(consumer, self._registry))

    def exposed(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


def _about_process(registry: CollectorRegistry, *, role: str, version: str) -> None:
    """Add the build's version, and the library's metrics of the process and of Python."""
    _about_build(registry, role=role, version=version)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)


def _about_build(registry: CollectorRegistry, *, role: str, version: str) -> None:
    build = {"version": version, "role": role}
    Info("brew_build", "The version that runs, and in which role.", registry=registry).info(build)


class ProcessesSum:
    """The sum of several processes' metrics, also of ended ones, whose files stay."""

    content_type = CONTENT_TYPE

    def __init__(self, folder: Path, *, role: str, version: str) -> None:
        """`folder`: where prometheus-client keeps the files of these processes."""
        self._registry = CollectorRegistry()
        _about_build(self._registry, role=role, version=version)
        self._registry.register(_Files(folder))

    def exposed(self) -> bytes:
        """Return the sums in Prometheus's text format."""
        return generate_latest(self._registry)


class _Files(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # Without empty files: a process has just created them, and the library can't read them.
        files = [str(file) for file in self._folder.glob("*.db") if file.stat().st_size]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _make_room(folder: Path) -> None:
    """Reserve disk space for this process's files. Raises OSError if the disk is full.

    The library writes to them through mapped memory: if the disk became full later, a write would kill the process.
    """
    for kind in ("counter", "histogram"):
        with (folder / f"{kind}_{os.getpid()}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM)


class Calls:
    """An order-service's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "brew_order_calls_total", "Calls that ended, by gRPC's status code.", ["method", "code"], registry=registry
        )
        self._call_s = Histogram(
            "brew_order_call_seconds",
            "From a call's arrival until its answer was handed to the client.",
            ["method"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._known: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def unknown(self) -> None:
        """Count a call of a method that does not exist, with gRPC's status code for it."""
        self._calls.labels("unknown", "UNIMPLEMENTED").inc()

    def ended(self, method: str, code: str, took_s: float) -> None:
        """Count and time a call."""
        if (found := self._known.get((method, code))) is None:
            found = self._known[method, code] = self._calls.labels(method, code), self._call_s.labels(method)
        count, times = found
        count.inc()
        times.observe(took_s)


class OutboxInstruments(metrics.OutboxCounters):
    """A publisher's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._published = Counter("brew_outbox_published_total", "Rows published by this process.", registry=registry)
        self._publish_s = Histogram(
            "brew_outbox_publish_seconds",
            "One transaction that published rows: fetch, send, acknowledgements, mark, commit.",
            buckets=BUCKETS,
            registry=registry,
        )
        failures = Counter(
            "brew_outbox_failures_total",
            "Tries that failed, by reason; of the reason `refused`, rows that were set aside.",
            ["reason"],
            registry=registry,
        )
        # All reasons at once, because a rate needs a first sample of 0.
        self._failures = {failure: failures.labels(failure.value) for failure in metrics.PublishFailure}

    def published(self, rows: int, took_s: float) -> None:
        """Count published rows, and time their transaction."""
        self._published.inc(rows)
        self._publish_s.observe(took_s)

    def failed(self, failure: metrics.PublishFailure, count: int = 1) -> None:
        """Count a failed try, or refused rows."""
        self._failures[failure].inc(count)


class InboxInstruments(metrics.InboxCounters):
    """A consumer's metrics."""

    def __init__(self, consumer: str, registry: CollectorRegistry) -> None:
        records = Counter(
            "brew_inbox_records_total", "Records, by what became of them.", ["consumer", "outcome"], registry=registry
        )
        batch_s = Histogram(
            "brew_inbox_batch_seconds",
            "What was read at a time: effects, commits, dead letters.",
            ["consumer"],
            buckets=BUCKETS,
            registry=registry,
        )
        retries = Counter(
            "brew_inbox_retries_total", "Batches tried again, by reason.", ["consumer", "reason"], registry=registry
        )
        overtaken = Counter(
            "brew_inbox_overtaken_records_total",
            "Records that were removed before the group had read them; 1 for a partition that was cut off.",
            ["consumer"],
            registry=registry,
        )
        delivery_s = Histogram(
            "brew_delivery_seconds",
            "From an event in the outbox to the commit of its effect, by the clocks of two machines.",
            ["consumer"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._effects, self._duplicates, self._others, self._dead, self._parked = (
            records.labels(consumer, outcome) for outcome in ("effect", "duplicate", "other", "dead", "parked")
        )
        self._batch_s = batch_s.labels(consumer)
        self._delivery_s = delivery_s.labels(consumer)
        self._overtaken = overtaken.labels(consumer)
        self._retries = {retry: retries.labels(consumer, retry.value) for retry in metrics.RetryReason}

    def records(self, before: metrics.Counted, now: metrics.Counted) -> None:
        """Count finished records by their outcome."""
        self._effects.inc(now.effects - before.effects)
        self._duplicates.inc(now.duplicates - before.duplicates)
        self._others.inc(now.others - before.others)
        self._dead.inc(now.dead - before.dead)
        self._parked.inc(now.parked - before.parked)

    def batch(self, took_s: float) -> None:
        """Time a finished batch."""
        self._batch_s.observe(took_s)

    def delivered(self, events: Sequence[Any], new: int) -> None:
        """Time the `new` events among these, from when they occurred until now.

        It is not known which events are new. The youngest are taken, because redelivered ones are older.
        """
        if not new:
            return
        occurred = [event.occurred_s for event in events]
        if new < len(occurred):
            occurred = sorted(occurred)[-new:]
        now, observe = time.time(), self._delivery_s.observe
        for since in occurred:
            # The event's time is by another machine's clock, and may be later than this machine's.
            observe(now - since if now > since else 0.0)

    def retried(self, retry: metrics.RetryReason) -> None:
        """Count a batch that is tried again."""
        self._retries[retry].inc()

    def overtaken(self, records: int) -> None:
        """Count records that were removed before the group read them."""
        self._overtaken.inc(records)
