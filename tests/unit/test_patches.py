"""The client library as this process uses it: durations by a steady clock, and questions that create nothing."""

import importlib
import inspect
import pkgutil
import time
from io import BytesIO

import kafka
import pytest
from kafka import client_async, conn
from kafka.cluster import ClusterMetadata
from kafka.coordinator.heartbeat import Heartbeat
from kafka.protocol.metadata import MetadataRequest_v4

from brewctl.delivery.broker.kafka_python import library_patches

# Of records, and of a thread that we do not use.
REAL_TIME = {"kafka.record.default_records", "kafka.record.legacy_records", "kafka.protocol.message"}
UNUSED = {"kafka.metrics.metrics"}


def test_every_module_of_the_library_that_measures_does_so_by_a_steady_clock() -> None:
    names = [module.name for module in pkgutil.walk_packages(kafka.__path__, "kafka.") if "vendor" not in module.name]
    modules = [importlib.import_module(name) for name in names]
    by_the_wall = {module.__name__ for module in modules if getattr(module, "time", None) is time}
    assert by_the_wall == REAL_TIME | UNUSED


def test_a_clock_that_is_set_back_stops_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat(heartbeat_interval_ms=10, session_timeout_ms=1000, max_poll_interval_ms=1000)
    heartbeat.sent_heartbeat()
    metadata = ClusterMetadata(metadata_max_age_ms=10)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    deadline = time.monotonic() + 10
    while not heartbeat.should_heartbeat() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heartbeat.should_heartbeat()
    assert metadata.ttl() == 0
    assert abs(library_patches._SteadyTime.time() - time.monotonic() - library_patches._SteadyTime._epoch) < 60


def test_the_one_sleep_of_a_connection_is_that_before_the_answer_to_the_question_for_the_version() -> None:
    """Another sleep in this module would be left out with it."""
    before, sleep, after = inspect.getsource(conn).partition("time.sleep(")
    assert sleep
    assert "time.sleep(" not in after
    assert before.rstrip().endswith("# HACK: sleeping to wait for socket to send bytes")
    assert conn.time.sleep is not time.sleep
    assert client_async.time.sleep is time.sleep


def test_a_question_for_metadata_creates_no_topic() -> None:
    request = client_async.MetadataRequest[1](["t"])
    assert request.API_VERSION == 4
    asked = MetadataRequest_v4.decode(BytesIO(request.encode()))
    assert (asked.topics, asked.allow_auto_topic_creation) == (["t"], False)
    assert MetadataRequest_v4.decode(BytesIO(client_async.MetadataRequest[1](None).encode())).topics is None
