"""Several processes behind one port of pages: their sum, and how each of them is."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from brewctl import __version__
from brewctl.lab.play.nodes import Node
from tests.conftest import Rig, run
from tests.integration.grpc_tools import dialled, locked_orders, order, wait_for_blocked
from tests.integration.http_tools import HTTP, numbers, page, place, wait_for
from tests.integration.test_workers import LISTENING, Crew

CREATED = 'brew_order_calls_total{code="OK",method="Create"}'


@pytest.fixture
def crew(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    """A supervisor whose pages are at `place(crew.node)`, and whose files are in a folder of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    command = ("serve", "order", "--port", "0", "--workers", "2", *HTTP)
    node: Node = rig.nodes.start("order-1", *command)
    node.wait_for("a crew", lambda each: any(line.startswith(f"[order-1] {LISTENING}") for line in each.lines))
    return Crew(rig, node)


def folders(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("brewctl-*"))


def create(crew: Crew, count: int) -> None:
    made = crew.rig.brewctl("create-order", "--customer", "c", "--count", str(count), "--addr", crew.address)
    assert made.returncode == 0, made.stderr


def test_the_sum_agrees_with_the_database_also_after_a_worker_was_killed(crew: Crew, tmp_path: Path) -> None:
    where = place(crew.node)
    ready = wait_for(where, "/readyz", 200)
    assert ready.lines == ["ready", "ok order-1.1 ready", "ok order-1.2 ready"]
    total = 0
    for number in range(4):  # each a connection, which one of the two gets
        create(crew, 5)
        total += 5
        if number == 2:
            os.kill(crew.workers()[0].pid, signal.SIGKILL)
            # Nobody is stuck: the dead one is replaced, and until then not ready.
            assert page(where, "/livez").status == 200
            assert numbers(where)[CREATED] == total
            crew.wait_for_starts(3)
            wait_for(where, "/readyz", 200)
        crew.rig.wait("the calls", lambda: numbers(where)[CREATED] == total)  # noqa: B023 - called at once
    assert crew.rig.counts().orders == total
    crew.rig.wait("the rows", lambda: numbers(where)["brew_outbox_published_total"] == total)
    found = numbers(where)
    assert found['brew_order_call_seconds_count{method="Create"}'] == total
    assert found['brew_order_call_seconds_bucket{le="+Inf",method="Create"}'] == total
    assert found[f'brew_build_info{{role="order",version="{__version__}"}}'] == 1

    (folder,) = folders(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700, "nobody else's to read or write"
    crew.node.process.send_signal(signal.SIGTERM)
    assert crew.node.ended(within_s=30) == 0
    assert folders(tmp_path) == []


def test_a_worker_that_is_stopped_makes_the_service_not_alive_and_is_named(crew: Crew) -> None:
    where = place(crew.node)
    wait_for(where, "/readyz", 200)
    stopped = crew.workers()[1]
    stopped.suspend()
    try:
        said = wait_for(where, "/livez", 503)
        assert said.lines == ["stuck", "ok order-1.1 alive", "NO order-1.2 does not answer within 1 s"]
        assert page(where, "/readyz").status == 503
        assert page(where, "/metrics").status == 200, "which asks no worker"
    finally:
        stopped.resume()
    wait_for(where, "/livez", 200)
    wait_for(where, "/readyz", 200)


def test_workers_that_drain_are_not_ready(crew: Crew) -> None:
    where = place(crew.node)
    wait_for(where, "/readyz", 200)
    with dialled(crew.rig, crew.address) as client:
        with locked_orders(crew.rig):
            call = client.stub.Create.future(order(), timeout=60)
            wait_for_blocked(crew.rig, 1)
            crew.node.process.send_signal(signal.SIGTERM)
            assert wait_for(where, "/readyz", 503).lines[1].startswith("NO it drains")
            assert page(where, "/livez").status == 200
        assert call.result().order_id
    assert crew.node.ended(within_s=30) == 0


def test_a_port_that_is_taken_starts_no_worker(crew: Crew) -> None:
    taken = run("serve", "order", "--workers", "2", "--port", "0", "--http", place(crew.node), env=crew.rig.env)
    assert taken.returncode == 1
    assert "can't be listened on (address already in use)" in taken.stderr
    assert taken.stderr.rstrip().endswith("or choose another with --http")
    assert LISTENING not in taken.stdout


def test_without_pages_workers_keep_no_numbers(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    node = rig.nodes.start("order-1", "serve", "order", "--port", "0", "--workers", "2")
    node.wait_for("a crew", lambda each: any(line.startswith(f"[order-1] {LISTENING}") for line in each.lines))
    assert folders(tmp_path) == []
