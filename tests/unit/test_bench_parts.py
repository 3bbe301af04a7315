"""The parts of the bench without servers: several clients, CPU time and the machine, which figures are judged."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import baseline
from brewctl.errors import BrewError
from brewctl.lab.bench import clients, cpu, drains, flow, machine, workers
from brewctl.lab.bench.figures import Figure
from brewctl.lab.load.histogram import Histogram
from brewctl.lab.load.measure import LoadResult, together
from brewctl.sandbox import processes, state, tools
from brewctl.sandbox.state import State
from tests.order_server import serving

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
WORKING = "import time\nwhile time.process_time() < 0.2: pass\n"


def result(*latencies_s: float, **others: Any) -> LoadResult:
    histogram = Histogram()
    for latency_s in latencies_s:
        histogram.record(latency_s)
    known: dict[str, Any] = {
        "seconds": 2.0,
        "count": len(latencies_s),
        "failures": {},
        "retries": 0,
        "unsent": 0,
        "latencies": histogram,
        "cancels": Histogram(),
        "cancel_failures": {},
    }
    return LoadResult(**{**known, **others})


def clients_left() -> list[psutil.Process]:
    """Return the load clients that still run; not what another test's process has left of itself."""
    alive = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in alive if "brewctl.lab.bench.client" in child.cmdline()]


def test_what_several_clients_measured_is_one_result() -> None:
    one = result(0.1, 0.2, failures={"gone": 1}, retries=2)
    both = together([one, result(0.9, 0.1, seconds=3.0, failures={"gone": 1, "full": 2}, unsent=5)])
    assert (both.count, both.seconds, both.retries, both.unsent) == (4, 3.0, 2, 5)
    assert both.failures == {"gone": 2, "full": 2}
    assert both.latencies.count == 4
    assert both.max_ms == 900
    assert both.mean_ms == pytest.approx(325)
    assert 100 <= both.percentile_ms(50) <= 101
    assert 200 <= both.percentile_ms(75) <= 201
    assert one.latencies.count == 2  # as it was


def test_load_comes_from_several_processes_over_several_connections() -> None:
    peers: set[str] = set()

    def handle(_number: int, context: Any) -> None:
        peers.add(context.peer())

    with serving(handle) as server:
        found, rate = clients.load(server.address, clients=2, in_flight=3, connections=3, warmup_s=0.0, duration_s=0.5)
    assert len(peers) == 6
    assert 0 < found.count == found.latencies.count == len(server.requests)
    assert rate > 0
    assert clients_left() == []


def test_a_client_that_fails_is_one_error_and_leaves_none_behind() -> None:
    with pytest.raises(BrewError, match=r"^a load client failed: order-service 127.0.0.1:1 refused the connection"):
        clients.load("127.0.0.1:1", clients=2, in_flight=1, connections=1, warmup_s=0.0, duration_s=30)
    assert clients_left() == []


def test_a_client_whose_starter_has_gone_ends() -> None:
    alone = [sys.executable, "-P", "-m", "brewctl.lab.bench.client", "{}"]
    done = subprocess.run(alone, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ready\n", b"")


def test_the_time_of_a_child_that_has_ended_is_its_parents() -> None:
    starts = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {WORKING!r}])\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert not psutil.Process(parent.pid).children()
        assert cpu.spent_s([parent.pid]) >= 0.2 - 2 * TICK_S  # user and system time, each in whole ticks
        parent.communicate("\n")
    assert cpu.spent_s([parent.pid]) == 0.0  # nobody's


def test_only_a_sandboxs_own_servers_have_processes_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREW_HOME", str(tmp_path))
    assert cpu.server_pids(Settings()) == {}
    server = processes.spawn("postgres", ["sleep", "60"], port=5, log=tmp_path / "log", cwd=tmp_path)
    broker = processes.spawn("kafka-1", ["sleep", "60"], port=7, log=tmp_path / "log", cwd=tmp_path)
    try:
        known = State("secret", "", 5, [(7, 8)], servers={"postgres": server, "kafka-1": broker})
        state.save(tmp_path, known)
        ours = Settings(database_url=known.database_url, brokers=("127.0.0.1:7",))
        assert cpu.server_pids(ours) == {cpu.KAFKA: [broker.pid], cpu.POSTGRESQL: [server.pid]}
        assert cpu.server_pids(Settings(database_url=known.database_url)) == {cpu.POSTGRESQL: [server.pid]}
        assert cpu.server_pids(Settings(brokers=("127.0.0.1:7",))) == {cpu.KAFKA: [broker.pid]}
    finally:
        processes.end([server, broker], [(15, 5.0), (9, 5.0)])  # type: ignore[list-item]
    assert cpu.server_pids(ours) == {}


def test_other_work_is_what_neither_this_process_nor_the_servers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    cores, spent = iter([(10.0, 100.0), (16.0, 110.0)]), iter([1.0, 3.0])
    monkeypatch.setattr(cpu, "_cores_s", lambda: next(cores))
    monkeypatch.setattr(cpu, "spent_s", lambda _pids: next(spent))
    assert cpu.Meter({"ours": [1]}).others() == pytest.approx(0.4)


def test_a_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"_LOOK_S": 0.05, "_ROUNDS": 1000, "_LOOPS": 2, "_APPENDS": 3}.items():
        monkeypatch.setattr(machine, name, size)
    found = machine.described(tmp_path / "home", ours=[os.getpid()])
    assert (found["cores"], found["python"]) == (machine.cores(), sys.version.split()[0])
    assert found["loop_ms"] > 0
    assert found["fsync_ms"] > 0
    assert 0 <= found["others_busy"] <= 1
    (tmp_path / "file").touch()
    assert machine.described(tmp_path / "file")["fsync_ms"] is None  # no folder to write to


@pytest.mark.parametrize(
    ("cores", "counts", "judged"),
    [(1, [1, 2], []), (2, [1, 2], []), (4, [1, 2, 4], [2]), (16, [1, 2, 4, 8, 16], [2, 4, 8])],
)
def test_workers_are_judged_where_there_are_cores_for_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, counts: list[int], judged: list[int]
) -> None:
    loaded: list[int] = []

    def load(_ground: object, count: int) -> tuple[LoadResult, float]:
        loaded.append(count)
        return result(0.1), 1000.0

    monkeypatch.setattr(workers, "_load", load)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    figures = {figure.name: figure for figure in workers.run(SimpleNamespace(reset=lambda: None))}  # type: ignore[arg-type]
    assert loaded == counts
    assert figures[f"{counts[-1]} workers"].floor == 1000 * counts[-1]
    assert [count for count in counts[1:] if figures[f"{count} workers"].at_least] == judged
    # Where they have to share cores, two are to do as much as one.
    assert ("2 workers against one" in figures) == (2 not in judged)


@pytest.mark.parametrize(("busy", "judged"), [(0.69, True), (0.7, False), (None, False)])
def test_the_delay_is_judged_where_the_machine_is_not_busy(
    monkeypatch: pytest.MonkeyPatch, busy: float | None, judged: bool
) -> None:
    took = flow._Took(result(0.1), busy, (1.0, 2.0), 10, {"order nodes": 0.5, "consumers": 0.2})
    monkeypatch.setattr(flow, "_watched", lambda *_, **__: took)
    nobody = SimpleNamespace(reset=lambda: None, nodes=lambda *_: _Nothing())
    figures = {figure.name: figure for figure in flow.latency(nobody)}  # type: ignore[arg-type]
    bounds = [figures[f"end to end {which}, 100 orders/s"].at_most for which in ("p50", "p99")]
    assert bounds == ([20.0, 80.0] if judged else [None, None])
    assert figures["CPU of five nodes, 100 orders/s"].value == pytest.approx(70)
    # Servers whose processes are not known here.
    assert figures["CPU of Kafka, 100 orders/s"] == Figure("CPU of Kafka, 100 orders/s", None, "ms", optional=True)


class _Nothing:
    def __enter__(self) -> list[object]:
        return []

    def __exit__(self, *_: object) -> None:
        return


@pytest.mark.parametrize("installed", [["kafka-python-ng"], ["kafka-python-ng", "librdkafka"]])
def test_each_kafka_client_that_is_installed_is_measured(monkeypatch: pytest.MonkeyPatch, installed: list[str]) -> None:
    asked: list[str] = []

    def measured(rate: float) -> Callable[..., float]:
        def measure(*_: object, env: Mapping[str, str]) -> float:
            asked.append(env["BREW_KAFKA_CLIENT"])
            return rate

        return measure

    class Java:
        def __init__(self, _brokers: object) -> None:
            self.produce = self.consume = lambda *_, **__: 10.0

    monkeypatch.setattr(drains, "clients", lambda: installed)
    monkeypatch.setattr(drains, "_TURNS", 2)
    monkeypatch.setattr(drains, "drain", measured(8.0))
    monkeypatch.setattr(drains, "_one_node", measured(6.0))
    for name in ("_two_nodes", "_inserts", "_one_by_one"):
        monkeypatch.setattr(drains, name, lambda _ground: 1.0)
    monkeypatch.setattr(drains, "_records", lambda _ground: [1])
    monkeypatch.setattr(drains, "_bytes", lambda _record: 1)
    monkeypatch.setattr(drains, "_tables", lambda _ground: _Nothing())
    monkeypatch.setattr(baseline, "produce", lambda *_: 1.0)
    monkeypatch.setattr(baseline, "fetch", lambda *_: 1.0)
    monkeypatch.setattr(tools, "KafkaTools", Java)
    ground: Any = SimpleNamespace(
        reset=lambda: None, tell=lambda _text: None, settings=Settings(), require_one_database=lambda: None
    )
    figures = {figure.name: figure for leg in (drains.publish, drains.consume) for figure in leg(ground)}

    both = len(installed) > 1
    assert [figures[name].at_least for name in figures if name.endswith("drain, librdkafka")] == [0.8, 0.6] * both
    assert set(asked) == set(installed)
