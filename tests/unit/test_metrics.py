"""Instruments: nothing at all without `--http`, and what a scraper reads with it."""

import datetime as dt
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brewctl import metrics
from brewctl.delivery.events import Event
from brewctl.delivery.inbox.batch import Tally
from brewctl.metrics import prometheus
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated

OFF = """
import sys
from brewctl import metrics
import brewctl.cli.main, brewctl.roles.consumer, brewctl.roles.order, brewctl.roles.publisher, brewctl.roles.workers
metrics.outbox().published(1, 0.1)
metrics.outbox().failed(metrics.PublishFailure.KAFKA)
metrics.inbox("g").delivered([object()], 1)
metrics.inbox("g").retried(metrics.RetryReason.EFFECT)
assert metrics.calls() is None
print([name for name in ("prometheus_client", "http.server", "brewctl.probes.endpoint") if name in sys.modules])
"""


def test_without_http_nothing_of_it_is_imported_or_done() -> None:
    found = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def instruments(monkeypatch: pytest.MonkeyPatch) -> prometheus.Instruments:
    monkeypatch.setattr(metrics, "_instruments", None)
    return metrics.enable(role="r", version="1")


def samples(exposed: bytes) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(exposed.decode())
        for sample in family.samples
    }


def event(data: Any, timestamp_ms: int = 0) -> Event[Any]:
    return Event(1, None, "t", "k", None, data, b"", [], timestamp_ms)


def created(ago_s: float) -> Event[Any]:
    order = OrderCreated()
    order.created_at.FromDatetime(dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago_s))
    return event(order)


def test_an_event_says_when_it_occurred_in_seconds_too() -> None:
    cancelled = OrderCancelled()
    cancelled.cancelled_at.FromNanoseconds(1_700_000_000_250_000_000)
    for each in (created(5), event(cancelled), event(b"no message", 1_700_000_000_250)):
        assert each.occurred_s == pytest.approx(each.occurred_at.timestamp())


def test_a_delivery_is_timed_from_when_the_event_occurred(instruments: prometheus.Instruments) -> None:
    metrics.inbox("g").delivered([created(20), created(45), created(45)], 3)
    found = samples(instruments.exposed())
    of_bound = [found[f"brew_delivery_seconds_bucket['{bound}', 'g']"] for bound in ("10.0", "30.0", "60.0")]
    assert of_bound == [0, 1, 3]
    assert found["brew_delivery_seconds_count['g']"] == 3


def test_of_events_that_partly_come_again_the_newest_are_timed(instruments: prometheus.Instruments) -> None:
    metrics.inbox("g").delivered([created(200), created(45), created(20)], 2)
    found = samples(instruments.exposed())
    assert found["brew_delivery_seconds_count['g']"] == found["brew_delivery_seconds_bucket['60.0', 'g']"] == 2


def test_an_event_of_a_clock_that_is_ahead_took_no_time(instruments: prometheus.Instruments) -> None:
    metrics.inbox("g").delivered([created(-60), event(b"", round(time.time() * 1000) + 60_000)], 2)
    metrics.inbox("g").delivered([], 0)
    found = samples(instruments.exposed())
    assert found["brew_delivery_seconds_sum['g']"] == 0
    assert found["brew_delivery_seconds_count['g']"] == 2


def test_records_are_counted_by_the_difference(instruments: prometheus.Instruments) -> None:
    inbox = metrics.inbox("g")
    inbox.records(Tally(1, 1, 1, 1, 1), Tally(2, 3, 4, 5, 6))
    inbox.records(Tally(2, 3, 4, 5, 6), Tally(2, 3, 4, 5, 6))
    found = samples(instruments.exposed())
    outcomes = ("effect", "duplicate", "other", "dead", "parked")
    assert [found[f"brew_inbox_records_total{sorted(('g', name))}"] for name in outcomes] == [1, 2, 3, 4, 5]


def test_every_reason_is_there_from_the_start(instruments: prometheus.Instruments) -> None:
    metrics.outbox()
    metrics.inbox("g")
    found = samples(instruments.exposed())
    assert all(found[f"brew_outbox_failures_total['{reason}']"] == 0 for reason in metrics.PublishFailure)
    assert all(found[f"brew_inbox_retries_total{sorted(('g', reason.value))}"] == 0 for reason in metrics.RetryReason)
    assert not any("_created" in name for name in found)


@dataclass(frozen=True)
class Several:
    """Processes whose numbers are summed up."""

    folder: Path

    def count(self, rows: int, *, then: str = "") -> None:
        code = f"""
import os, signal
from brewctl import metrics
metrics.enable(role="order", version="1", shared=True)
metrics.outbox().published({rows}, 0.02)
{then}
"""
        env = {**os.environ, metrics.SHARED: str(self.folder)}
        subprocess.run([sys.executable, "-c", code], env=env, check=not then)

    def sum(self) -> dict[str, float]:
        return samples(metrics.summed(self.folder, role="order", version="1").exposed())


def test_the_sum_of_processes_keeps_what_a_killed_one_counted(tmp_path: Path) -> None:
    several = Several(tmp_path)
    several.count(3)
    several.count(4, then="os.kill(os.getpid(), signal.SIGKILL)")
    found = several.sum()
    assert found["brew_outbox_published_total[]"] == 7
    assert found["brew_outbox_publish_seconds_count[]"] == found["brew_outbox_publish_seconds_bucket['0.025']"] == 2
    assert found["brew_build_info['1', 'order']"] == 1


def test_a_process_that_has_only_made_its_file_takes_nothing_from_the_sum(tmp_path: Path) -> None:
    several = Several(tmp_path)
    several.count(3)
    (tmp_path / "counter_1.db").write_bytes(b"")
    (tmp_path / "histogram_1.db").write_bytes(bytes(4096))
    assert several.sum()["brew_outbox_published_total[]"] == 3


def test_a_full_disk_is_found_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes into memory that is a file: a process that finds no room for it then is killed."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(metrics.SHARED, str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        metrics.enable(role="order", version="1", shared=True)


def test_one_that_goes_on_counts_within_the_room_that_it_has_taken(tmp_path: Path) -> None:
    code = f"""
from brewctl import metrics
metrics.enable(role="order", version="1", shared=True)
metrics.outbox().published(1, 0.02)
metrics.inbox({"g" * 100!r})
import grpc
for method in ("Create", "Cancel", "Get"):
    for code in grpc.StatusCode:
        metrics.calls().ended(method, code.name, 0.1)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, metrics.SHARED: str(tmp_path)}, check=True)
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert {file.stat().st_size for file in files} == {prometheus._ROOM}
