"""`brewctl load` against order-services that answer as the test wants: what it shows, and how it ends."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from brewctl.lifecycle import wait_until
from tests.conftest import begin, run
from tests.order_server import OrderServer, serving


@contextlib.contextmanager
def interrupted(server: OrderServer, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A load that is sent SIGINT after its first order, and is over at the end of the block."""
    with begin("load", *arguments, env={"BREW_ORDER_ADDRS": server.address}) as loading:
        try:
            wait_until("an order", lambda: len(server.requests) > 0, timeout_s=60)
            loading.send_signal(signal.SIGINT)
            yield loading
        finally:
            loading.kill()


def test_the_default_is_ten_seconds_after_one() -> None:
    with serving() as server, interrupted(server, "--json", "--concurrency", "2") as loading:
        result, said = loading.communicate(timeout=60)
    assert (loading.returncode, said) == (130, "brewctl: interrupted\n")
    settings = json.loads(result)["settings"]
    assert (settings["warmup_s"], settings["duration_s"], settings["orders"]) == (1, 10, None)
    assert (settings["concurrency"], settings["connections"], settings["rate"]) == (2, 1, None)


@pytest.mark.parametrize(("given", "connections"), [((), 2), (("--connections", "8"), 8)])
def test_callers_share_connections(given: tuple[str, ...], connections: int) -> None:
    together = threading.Barrier(8)
    peers: set[str] = set()

    def all_at_once(_at: int, context: Any) -> None:
        peers.add(context.peer())
        together.wait(20)

    arguments = ("--orders", "8", "--warmup", "0", "--concurrency", "8", "--json", *given)
    with serving(all_at_once) as server:
        done = run("load", "--addr", server.address, *arguments)
    assert json.loads(done.stdout)["settings"]["connections"] == connections
    assert len(peers) == connections


def test_orders_that_fail_for_good() -> None:
    def answers(at: int, context: Any) -> None:
        if at % 3 == 1:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not \x1b[31m you " * 20)
        if at == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "a moment")

    with serving(answers) as server:
        done = run("load", "--addr", server.address, "--orders", "12", "--warmup", "0", "--concurrency", "1")
    assert done.returncode == 1
    assert done.stderr == "brewctl: 4 of 12 orders failed\n"
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert lines[0].startswith("orders      12 in ")
    assert lines[1].split() == ["latency", "ms", "p50", "p90", "p99", "p99.9", "max", "mean"]
    assert len([float(cell.replace(",", "")) for cell in lines[2].split()]) == 6
    assert lines[3].split()[:2] == ["retries", "1"]
    assert lines[4].split() == ["failures", "4"]
    assert lines[5].split()[0] == "4"
    assert f"order-service {server.address} answered PERMISSION_DENIED: not" in lines[5]
    assert len(lines) == 6


def test_what_was_due_and_not_sent_is_said() -> None:
    go_on = threading.Event()
    arguments = ("--rate", "100000", "--concurrency", "1", "--warmup", "0")
    with serving(lambda _at, _context: go_on.wait(60)) as server, interrupted(server, *arguments) as loading:
        go_on.set()
        result, _ = loading.communicate(timeout=60)
    unsent = result.splitlines()[-1]
    assert unsent.startswith("unsent ")
    assert len(unsent) <= 80


def test_in_a_terminal_a_line_lives_beside_the_result() -> None:
    controller, terminal = pty.openpty()
    try:
        with serving() as server:
            short = ("--concurrency", "1", "--duration", "1", "--warmup", "0", "--json")
            env = {"TERM": "xterm", "BREW_ORDER_ADDRS": server.address}
            loading = begin("load", *short, env=env, stderr=terminal)
            os.close(terminal)
            screen = ""
            with contextlib.suppress(OSError):  # once nobody has the terminal any more
                while True:
                    screen += os.read(controller, 10_000).decode()
            result, _ = loading.communicate(timeout=60)
    finally:
        os.close(controller)
    assert loading.returncode == 0
    assert json.loads(result)["count"] == len(server.requests)
    assert re.search(r" 1 s  [\d,]+ sent  [\d,]+ a second  0 failed", screen)


def test_a_share_of_the_orders_is_cancelled() -> None:
    def refuses(at: int, context: Any) -> None:
        if at == 1:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not on a Friday")

    arguments = ("--orders", "40", "--warmup", "0", "--concurrency", "4", "--cancel", "0.25")
    with serving(cancel=refuses) as server:
        done = run("load", "--addr", server.address, *arguments)
        assert len(server.cancels) == 10
        assert {each.order_id for each in server.cancels if each.reason} == {each.order_id for each in server.cancels}
        shown = run("load", "--addr", server.address, *arguments, "--json")
    assert (done.returncode, done.stderr) == (1, "brewctl: 1 of 10 cancels failed\n")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[5] == "cancels     9 of 10 acknowledged"
    assert len([float(cell.replace(",", "")) for cell in lines[6].split()[1:]]) == 6
    assert "answered FAILED_PRECONDITION: not on" in lines[7]
    figures = json.loads(shown.stdout)
    cancels = figures["cancels"]
    assert (cancels["count"], cancels["acknowledged"], cancels["failed"], cancels["failures"]) == (10, 10, 0, {})
    assert 0 < cancels["latency_ms"]["p50"] <= cancels["latency_ms"]["max"]
    assert (figures["count"], figures["settings"]["cancel"]) == (40, 0.25)
