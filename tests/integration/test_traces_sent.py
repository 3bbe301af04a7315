"""Traces of real roles, at a real receiver of OTLP: one that takes them, and ones that are of no use."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lifecycle import wait_until
from tests.conftest import Rig
from tests.integration.grpc_tools import PARENT, TRACE, dialled
from tests.integration.reading import read_topic

RECEIVER = Path(__file__).parents[1] / "otlp_receiver.py"
# Longer than a drain and its margin on any machine, and shorter than what an exporter would try for.
BOUND_S = 25
ORDERS = 20
# Tried at once, and again and again for as long as an exporter ever would.
EAGER = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
# A proxy that is set for the web, and is not there: this machine is reached without it.
PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "grpc_proxy", "all_proxy"), "http://127.0.0.1:1")
NO_EXCEPTION = {"no_proxy": "", "NO_PROXY": ""}


@contextlib.contextmanager
def receiver(path: Path, way: str) -> Iterator[dict[str, str]]:
    """Run a receiver; yields the variables that name it."""
    command = [sys.executable, str(RECEIVER), str(path), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
            yield env | ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} if way.startswith("grpc") else {})
        finally:
            process.kill()


def spans(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.contextmanager
def nodes(rig: Rig, tmp_path: Path, env: dict[str, str]) -> Iterator[Nodes]:
    with Nodes(rig.settings, logs=tmp_path / "traced", on_line=lambda _line: None, env=env) as started:
        yield started


def start(of: Nodes, name: str, *arguments: str) -> Node:
    node = of.start(name, *arguments)
    node.wait_ready(timeout_s=120)
    return node


def story(of: Nodes) -> list[Node]:
    order = start(of, "order-1", "serve", "order", "--port", "0")
    return [order, *(start(of, f"{name}-1", "consume", name) for name in ("inventory", "notifications"))]


@pytest.mark.parametrize("way", ["take", "grpc"])
def test_the_spans_of_every_role_lead_to_the_call(rig: Rig, tmp_path: Path, way: str) -> None:
    got = tmp_path / "spans.json"
    env = {**PROXY, **NO_EXCEPTION}
    with receiver(got, way) as named, nodes(rig, tmp_path, {**env, **named}) as started:
        order, *consumers = story(started)
        with dialled(rig, order.address) as service:
            service.create(metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
        rig.wait("both effects", lambda: rig.counts().notifications == rig.counts().reservations == 1)
        for node in (order, *consumers):
            node.process.send_signal(signal.SIGTERM)
            assert node.ended(within_s=BOUND_S) == 0
            assert "traces" not in node.log.read_text()
    # Also the last spans have arrived: each role has sent them at its end.
    found = {(span["service"], span["instance"], span["name"].partition(" ")[0]): span for span in spans(got)}
    create = found["order-service", "order-1", "brew.orders.v1.OrderService/Create"]
    assert (create["trace"], create["parent"]) == (TRACE, PARENT)
    created = [create["trace"], create["span"]]
    for name in (
        ("order-service", "order-1", "send"),
        ("inventory", "inventory-1", "process"),
        ("notifications", "notifications-1", "process"),
    ):
        assert (found[name]["links"], found[name]["parent"]) == ([created], "")
    assert len(spans(got)) == 4
    traceparent = f"00-{TRACE}-{create['span']}-01"
    assert rig.connection.execute("SELECT trace_id, traceparent FROM outbox").fetchall() == [(TRACE, traceparent)]
    (record,) = read_topic(rig.settings)
    assert dict(record.headers)["traceparent"].decode() == traceparent


def test_each_worker_sends_its_own(rig: Rig, tmp_path: Path) -> None:
    got = tmp_path / "spans.json"
    with receiver(got, "take") as named, nodes(rig, tmp_path, named) as started:
        order = start(started, "order-1", "serve", "order", "--port", "0", "--workers", "2")
        with dialled(rig, order.address) as service:
            service.create()
        order.process.send_signal(signal.SIGTERM)
        assert order.ended(within_s=BOUND_S) == 0
    instances = {span["instance"] for span in spans(got)}
    assert instances
    assert instances <= {"order-1.1", "order-1.2"}


@pytest.mark.parametrize("way", ["away", "hang", "refuse", "grpc-hang", "grpc-away"])
def test_a_receiver_that_is_of_no_use_delays_nothing_and_is_one_line(rig: Rig, tmp_path: Path, way: str) -> None:
    got = tmp_path / "spans.json"
    with contextlib.ExitStack() as held:
        if way.endswith("away"):
            named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
            named |= {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} if way.startswith("grpc") else {}
        else:
            named = held.enter_context(receiver(got, way))
        order, *consumers = story(held.enter_context(nodes(rig, tmp_path, {**EAGER, **named})))
        with dialled(rig, order.address) as service:
            for _ in range(ORDERS):
                assert service.create(timeout=5).code.name == "OK"
        rig.wait("all effects", lambda: rig.counts().notifications == rig.counts().reservations == ORDERS)
        if way == "refuse":  # it says no after a while
            for node in (order, *consumers):
                wait_until(f"a line of {node.name}", lambda node=node: lines(node) != [], timeout_s=60)  # type: ignore[misc]
        for node in (order, *consumers):
            node.process.send_signal(signal.SIGTERM)
        for node in (order, *consumers):
            assert node.ended(within_s=BOUND_S) == 0
            assert "stopped." in node.lines[-1]
            (line,) = lines(node)
            assert "orders go on" in line
            assert "Traceback" not in node.log.read_text()
    assert spans(got) == []


def lines(node: Node) -> list[str]:
    """What a node says of its traces."""
    return [line for line in node.log.read_text().splitlines() if "traces" in line or "opentelemetry" in line]


def test_the_queue_is_bounded_and_a_full_one_drops_spans_and_no_order(rig: Rig, tmp_path: Path) -> None:
    small = {"OTEL_BSP_MAX_QUEUE_SIZE": "2", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}
    with receiver(tmp_path / "spans.json", "hang") as named, nodes(rig, tmp_path, {**small, **named}) as started:
        order = start(started, "order-1", "serve", "order", "--port", "0")
        with dialled(rig, order.address) as service:
            for _ in range(ORDERS):
                assert service.create(timeout=5).code.name == "OK"
        wait_until("a line says so", lambda: "Queue full" in order.log.read_text(), timeout_s=60)
        order.process.send_signal(signal.SIGTERM)
        assert order.ended(within_s=BOUND_S) == 0
        assert len(lines(order)) == 1
    assert rig.counts().orders == ORDERS
