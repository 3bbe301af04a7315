"""Workers open their port together: none listens before all are ready, and what ends them while they wait."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from brewctl.config import LogFormat, environment
from brewctl.errors import BrewError
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.limits import Limits
from brewctl.roles.workers import Workers
from tests.conftest import Rig
from tests.integration.grpc_tools import SERVICE, Service, order
from tests.integration.test_workers import CLIENTS, gone, workers_of

WAIT_S = 60


@dataclass
class Waiting:
    """A worker that is ready and waits for the other one, which stands still before it is ready."""

    ready: psutil.Process
    late: psutil.Process

    @property
    def both(self) -> list[psutil.Process]:
        return [self.ready, self.late]

    @property
    def port(self) -> int:
        arguments = self.late.cmdline()
        return int(arguments[arguments.index("--port") + 1])


def waiting(pid: int) -> Waiting:
    """Stop the second worker at its start: it is started once the first one is ready."""
    found: list[psutil.Process] = []

    def second() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # between its fork and its program
            found[:] = workers_of(pid)
        return len(found) == 2

    wait_until("two workers", second, timeout_s=WAIT_S, every_s=0.005)
    found[1].suspend()
    # Of two signals that wait for a process, the one with the lower number is delivered first.
    wait_until("one that stands still", lambda: found[1].status() == psutil.STATUS_STOPPED, timeout_s=WAIT_S)
    return Waiting(*found)


def clients_of(process: psutil.Process, port: int) -> int:
    """How many clients a process has on its port."""
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in process.net_connections())


@pytest.fixture
def node(rig: Rig) -> Node:
    return rig.nodes.start("order-1", "serve", "order", "--port", "0", "--workers", "2")


@pytest.fixture
def crew(node: Node) -> Iterator[Waiting]:
    crew = waiting(node.process.pid)
    yield crew
    for worker in crew.both:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


def complaints(node: Node) -> list[str]:
    return [line for line in node.log.read_text().splitlines() if " level=info " not in line]


def test_clients_that_were_there_first_are_spread(rig: Rig, node: Node, crew: Waiting) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", crew.port))
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{crew.port}"
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(CLIENTS)]
        calls = [
            Service(rig, address, channel).stub.Create.future(order(), timeout=WAIT_S, wait_for_ready=True)
            for channel in channels
        ]
        assert not node.lines
        crew.late.resume()
        assert all(call.result().order_id for call in calls)
        connections = [clients_of(worker, crew.port) for worker in crew.both]
    assert sum(connections) == CLIENTS
    assert all(connections), connections


def supervisor(node: Node, _crew: Waiting) -> None:
    node.process.send_signal(signal.SIGTERM)


def everybody(node: Node, crew: Waiting) -> None:
    for worker in crew.both:
        worker.send_signal(signal.SIGTERM)
    node.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("tell", [supervisor, everybody])
def test_a_stop_while_they_wait(node: Node, crew: Waiting, tell: Callable[[Node, Waiting], None]) -> None:
    tell(node, crew)
    assert gone([crew.ready])
    crew.late.resume()
    assert node.ended(within_s=30) == 0
    assert gone(crew.both)
    assert complaints(node) == []
    assert [line for line in node.lines if "listening" in line] == []


def test_nobody_waits_for_a_supervisor_that_is_killed(node: Node, crew: Waiting) -> None:
    node.kill()
    assert gone([crew.ready])
    crew.late.resume()
    assert gone(crew.both)
    assert complaints(node) == []


def test_one_that_dies_while_the_others_wait_ends_the_start(node: Node, crew: Waiting) -> None:
    crew.late.kill()
    assert node.ended(within_s=30) == 1
    assert gone(crew.both)
    assert complaints(node) == ["brewctl: order-1.2 was ended by signal 9"]


def test_one_that_does_not_get_ready_is_named(rig: Rig) -> None:
    workers = Workers(
        rig.settings, node="order-1", count=2, host="127.0.0.1", port=0, log_format=LogFormat.LOGFMT, verbose=False
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(workers.run, stop := threading.Event())
        try:
            crew = waiting(os.getpid())
            workers._settings = replace(rig.settings, limits=Limits(worker_ready_s=0.1))
            late = r"^order-1\.2 did not get ready to listen within 0\.1 s: see .*`brewctl doctor`"
            with pytest.raises(BrewError, match=late):
                running.result(30)
        finally:
            stop.set()
    assert gone(crew.both)


# A process of several on one port, whose connections live for so many seconds.
SHARING = """
import sys
from brewctl import signals
from brewctl.cli import options
from brewctl.limits import Limits
from brewctl.roles import order
settings = options.settings(limits=Limits(connection_age_s=float(sys.argv[3])))
with signals.stop_on_signals() as stop:
    port = int(sys.argv[2])
    order.run(settings, stop, node=sys.argv[1], host="127.0.0.1", port=port, share_port=True, publishes=False)
"""


@contextlib.contextmanager
def sharing(rig: Rig, name: str, port: int, age_s: float) -> Iterator[tuple[psutil.Process, str]]:
    """A process that listens, and its address."""
    command = [sys.executable, "-c", SHARING, name, str(port), str(age_s)]
    with subprocess.Popen(
        command, env={**os.environ, **environment(rig.settings)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), process.stdout.readline().split()[-1]
        finally:
            process.kill()


def test_a_process_that_comes_later_gets_calls_and_none_fails(rig: Rig) -> None:
    """Their connections age in a fifth of a second: with those of a worker this test would take minutes."""
    outcomes: list[object] = []
    moved = threading.Event()

    def call(service: Service) -> None:
        while not moved.is_set():
            outcomes.append(service.create().code)

    with contextlib.ExitStack() as stack:
        _, address = stack.enter_context(sharing(rig, "order-1.1", 0, 0.2))
        port = int(address.rpartition(":")[2])
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(8)]
        watch = health_pb2_grpc.HealthStub(stack.enter_context(grpc.insecure_channel(address, options))).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE), timeout=300
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        pool = stack.enter_context(ThreadPoolExecutor(16))
        stack.callback(moved.set)
        calls = [pool.submit(call, Service(rig, address, channels[at % 8])) for at in range(16)]
        wait_until("calls", lambda: len(outcomes) >= 16, timeout_s=30)
        second, _ = stack.enter_context(sharing(rig, "order-1.2", port, 0.2))
        wait_until("clients of the second", lambda: clients_of(second, port) > 0, timeout_s=30)
        before = len(outcomes)
        wait_until("more calls", lambda: len(outcomes) > before + 500, timeout_s=60)
        moved.set()
        for each in calls:
            each.result(60)
        assert watch.is_active(), "it has no end, and so its connection has none"
    assert set(outcomes) == {grpc.StatusCode.OK}
