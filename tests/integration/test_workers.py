"""Several processes on one port: who gets the calls, who is replaced, and that nobody is left behind."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import grpc
import psutil
import pytest

from brewctl.config import LogFormat
from brewctl.errors import DrainTimeoutError
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.limits import Limits
from brewctl.roles.workers import Workers
from tests.conftest import Rig, open_rig
from tests.integration.grpc_tools import (
    SEVERAL,
    Service,
    dialled,
    knows_of,
    locked_orders,
    order,
    rows_of,
    somebody,
    wait_for_blocked,
)

LISTENING = "order-service listening on"
# Each has a connection of its own, which the kernel gives to one of two workers: once in 2 billion runs, all to one.
CLIENTS = 32


@dataclass
class Crew:
    """A supervisor and its two workers."""

    rig: Rig
    node: Node

    @property
    def address(self) -> str:
        return self.node.address

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    @property
    def complaints(self) -> list[str]:
        """What is on stderr, but for the good news."""
        return [line for line in self.node.log.read_text().splitlines() if " level=info " not in line]

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.node.process.pid)

    def wait_for_starts(self, count: int) -> None:
        """Wait until workers have listened so often, the first two included."""
        self.node.wait_for(
            f"{count} starts",
            lambda node: sum(line.startswith("[order-1.") and LISTENING in line for line in node.lines) == count,
        )

    def connections(self) -> list[int]:
        """How many clients each worker has."""

        def of(worker: psutil.Process) -> int:
            mine = [each for each in worker.net_connections() if each.laddr.port == int(self.port)]
            return sum(each.status == psutil.CONN_ESTABLISHED for each in mine)

        return [of(worker) for worker in self.workers()]


def workers_of(pid: int) -> list[psutil.Process]:
    """The workers of a process, by their names."""
    children = [each for each in psutil.Process(pid).children() if each.status() != psutil.STATUS_ZOMBIE]
    return sorted((each for each in children if "--worker" in each.cmdline()), key=psutil.Process.cmdline)


def start(rig: Rig, *arguments: str) -> Crew:
    node = rig.nodes.start("order-1", *arguments, "serve", "order", "--port", "0", "--workers", "2")
    node.wait_for("a crew", lambda node: any(line.startswith(f"[order-1] {LISTENING}") for line in node.lines))
    return Crew(rig, node)


@pytest.fixture(scope="module")
def shared(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """A crew for all tests that do no harm to it."""
    with open_rig(servers, tmp_path_factory.mktemp("workers")) as rig:
        yield start(rig, "-v")


@pytest.fixture
def crew(rig: Rig) -> Crew:
    """A crew of one test's own."""
    return start(rig)


@contextlib.contextmanager
def strangers(crew: Crew) -> Iterator[list[Service]]:
    """Clients that share no connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(crew.address, options)) for _ in range(CLIENTS)]
        yield [Service(crew.rig, crew.address, channel) for channel in channels]


def codes(clients: list[Service]) -> set[grpc.StatusCode]:
    return {client.create().code for client in clients}


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_it_listens_once_all_of_its_workers_do(shared: Crew) -> None:
    *workers, own = shared.node.lines
    assert sorted(workers) == [f"[order-1.{number}] {LISTENING} {shared.address}" for number in (1, 2)]
    assert own == f"[order-1] {LISTENING} {shared.address}"


def test_each_worker_takes_calls(shared: Crew) -> None:
    with strangers(shared) as clients:
        assert codes(clients) == {grpc.StatusCode.OK}
        assert {client.health().code for client in clients} == {grpc.StatusCode.OK}
        connections = shared.connections()
        assert sum(connections) == CLIENTS
        assert all(connections), connections


@pytest.mark.parametrize("more", [(), ("--workers", "2")])
def test_nobody_else_gets_in_on_the_port(shared: Crew, more: tuple[str, ...]) -> None:
    second = shared.rig.brewctl("serve", "order", "--port", shared.port, *more, timeout=30)
    assert (second.returncode, second.stdout) == (1, "")
    assert only_line(second.stderr).startswith(
        f"brewctl: port {shared.port} on 127.0.0.1 can't be listened on (address already in use): "
    )
    with dialled(shared.rig, shared.address) as client:
        assert client.create().code is grpc.StatusCode.OK


def test_workers_get_the_options_and_no_secret(shared: Crew) -> None:
    for worker in shared.workers():
        arguments = worker.cmdline()
        assert "--verbose" in arguments
        assert arguments[arguments.index("--log-format") + 1] == "logfmt"
        assert shared.rig.settings.database_url not in arguments
        assert worker.environ()["BREW_DATABASE_URL"] == shared.rig.settings.database_url


def test_a_busy_port_is_one_line(service: Service) -> None:
    port = service.address.rpartition(":")[2]
    second = service.rig.brewctl("serve", "order", "--workers", "2", "--port", port, timeout=30)
    assert (second.returncode, second.stdout) == (1, "")
    assert only_line(second.stderr).startswith(
        f"brewctl: port {port} on 127.0.0.1 can't be listened on (address already in use): "
    )
    assert service.create().code is grpc.StatusCode.OK


def test_without_tables_it_does_not_start(rig: Rig) -> None:
    rig.connection.execute("DROP TABLE orders, outbox")
    started = rig.brewctl("serve", "order", "--workers", "3", "--port", "0", timeout=30)
    assert (started.returncode, started.stdout) == (1, "")
    assert "`brewctl db migrate`" in only_line(started.stderr)


def test_a_dead_worker_is_replaced_and_calls_go_on(crew: Crew) -> None:
    first, second = crew.workers()
    first.kill()
    assert gone([first])
    with strangers(crew) as clients:
        assert codes(clients) == {grpc.StatusCode.OK}
    crew.wait_for_starts(3)
    (complaint,) = crew.complaints
    assert complaint.endswith(" level=warning node=order-1 event=worker_died worker=order-1.1 code=-9")
    with strangers(crew) as clients:
        assert codes(clients) == {grpc.StatusCode.OK}
        assert len(crew.connections()) == 2
        assert all(crew.connections())
    assert second in crew.workers()
    # The contract's line is said once.
    assert [line for line in crew.node.lines if line.startswith("[order-1] ")] == [
        f"[order-1] {LISTENING} {crew.address}"
    ]


def test_a_replacement_that_can_not_start_is_tried_again(crew: Crew) -> None:
    crew.rig.connection.execute("ALTER TABLE outbox RENAME TO outbox_away")
    crew.workers()[1].kill()
    wait_until("two tries", lambda: str(crew.complaints).count("worker=order-1.2 code=1") >= 2, timeout_s=30)
    crew.rig.connection.execute("ALTER TABLE outbox_away RENAME TO outbox")
    crew.wait_for_starts(3)
    assert crew.node.alive


def drains(client: Service) -> bool:
    return client.create(customer_id="late", timeout=0.5).code is grpc.StatusCode.UNAVAILABLE


def as_a_terminal_does(crew: Crew) -> None:
    os.killpg(crew.node.process.pid, signal.SIGINT)


def as_a_service_manager_does(crew: Crew) -> None:
    """To every process of the service: what comes from both must not be taken for a second signal."""
    for pid in (*(worker.pid for worker in crew.workers()), crew.node.process.pid):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("ask", [as_a_terminal_does, as_a_service_manager_does])
def test_one_signal_drains_all(crew: Crew, ask: Callable[[Crew], None]) -> None:
    workers = crew.workers()
    customer = somebody()
    with strangers(crew) as clients:
        with locked_orders(crew.rig):
            calls = [each.stub.Create.future(order(customer_id=customer)) for each in clients[:SEVERAL]]
            wait_for_blocked(crew.rig, 1)
            for each in clients[:SEVERAL]:
                knows_of(each)
            ask(crew)
            wait_until("a crew that refuses new calls", lambda: drains(clients[-1]), timeout_s=4)
        ids = {call.result(30).order_id for call in calls}
    assert crew.node.ended(within_s=30) == 0
    assert not any(worker.is_running() for worker in workers)
    assert len(ids) == SEVERAL
    assert rows_of(crew.rig, customer) == (SEVERAL, SEVERAL)
    assert crew.rig.counts().outbox_unpublished == 0
    # The lock that keeps their calls in hand may be worth a line.
    assert [line for line in crew.complaints if "event=orders_held" not in line] == []
    crew.rig.nodes.stop()
    assert sorted(crew.node.lines[-3:-1]) == [f"[order-1.{number}] order-service stopped." for number in (1, 2)]
    assert crew.node.lines[-1] == "[order-1] order-service stopped."


def test_the_second_signal_leaves_nobody_behind(crew: Crew) -> None:
    workers = crew.workers()
    for worker in workers:
        worker.suspend()  # who stands still drains never
    # Of two of one kind the second may be lost.
    crew.node.process.send_signal(signal.SIGTERM)
    crew.node.process.send_signal(signal.SIGINT)
    assert crew.node.ended(within_s=30) == 130
    assert gone(workers)


def test_nobody_outlives_a_supervisor_that_is_killed(crew: Crew) -> None:
    workers = crew.workers()
    with strangers(crew) as clients:
        assert codes(clients) == {grpc.StatusCode.OK}
    crew.node.kill()
    assert gone(workers)
    # They drained: no word of an error, nothing left to publish.
    assert crew.complaints == []
    assert crew.rig.counts().outbox_unpublished == 0


def test_a_worker_that_does_not_drain_is_killed(rig: Rig) -> None:
    settings = replace(rig.settings, limits=Limits(drain_s=0.1))
    crew = Workers(
        settings, node="order-1", count=2, host="127.0.0.1", port=0, log_format=LogFormat.LOGFMT, verbose=False
    )
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(crew.run, stop)
        try:
            wait_until("two workers", lambda: len(crew.listening) == 2, timeout_s=30)
            workers = workers_of(os.getpid())
            workers[1].suspend()
        finally:
            stop.set()
        with pytest.raises(DrainTimeoutError, match=r"order-1\.2 did not stop within"):
            running.result(30)
    assert gone(workers)
