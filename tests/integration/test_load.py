"""`brewctl load` against real order nodes: what it says is what is in the tables."""

import json
import signal

import pytest

from tests.conftest import Rig, begin
from tests.integration.grpc_tools import rows


def test_every_order_is_a_row_and_a_figure(rig: Rig) -> None:
    (_, one), (_, other) = rig.serve("order-1"), rig.serve("order-2")
    addresses = ("--addr", one, "--addr", other)
    done = rig.brewctl("load", *addresses, "--orders", "50", "--warmup", "0", "--concurrency", "8", "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    shown = json.loads(done.stdout)
    assert rows(rig) == (50, 50)
    assert (shown["count"], shown["failed"], shown["failures"], shown["unsent"]) == (50, 0, {}, 0)
    assert list(shown["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max", "mean"]
    assert 0 < shown["latency_ms"]["p50"] <= shown["latency_ms"]["p99.9"] <= shown["latency_ms"]["max"]
    assert shown["rate_per_s"] == pytest.approx(50 / shown["seconds"], rel=0.05)
    assert shown["settings"] == {
        "addresses": [one, other],
        "connections": 2,
        "concurrency": 8,
        "rate": None,
        "warmup_s": 0.0,
        "duration_s": None,
        "orders": 50,
    }


def test_ctrl_c_shows_what_was_measured(rig: Rig) -> None:
    _, address = rig.serve()
    endless = ("--rate", "50", "--duration", "3600", "--warmup", "0", "--json")
    with begin("load", *endless, env={"BREW_ORDER_ADDRS": address}) as loading:
        try:
            rig.wait("some orders", lambda: rig.counts().orders >= 10)
            loading.send_signal(signal.SIGINT)
            result, said = loading.communicate(timeout=60)
        finally:
            loading.kill()
    assert (loading.returncode, said) == (130, "brewctl: interrupted\n")
    shown = json.loads(result)
    assert rows(rig) == (shown["count"], shown["count"])
    assert (shown["settings"]["rate"], shown["settings"]["duration_s"]) == (50, 3600)
