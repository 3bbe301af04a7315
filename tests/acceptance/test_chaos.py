"""Faults on a sandbox of three brokers, under load; and that the verdict is worth something."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from brewctl.lab.chaos.scenarios import SCENARIOS, chance
from brewctl.lab.play.cast import STORY
from brewctl.lifecycle import wait_until
from tests.acceptance.conftest import brewctl, environment, status
from tests.conftest import begin, run

SEED = 20261124
# What no other test does: a batch twice, answers that never arrive, rubbish; then all at random.
PLAYED = ("kill-publisher", "cut-responses", "poison-records", "mixed")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a sandbox with three brokers, for chaos to break."""
    home = tmp_path_factory.mktemp("arena")
    up = run("up", env={"BREW_HOME": str(home)}, timeout=600)
    assert up.returncode == 0, up.stderr
    yield home
    down = run("down", "--purge", env={"BREW_HOME": str(home)})
    assert down.returncode == 0, down.stderr
    assert {entry.name for entry in home.iterdir()} <= {"lock"}


def nodes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if {"serve", "consume"} & set(child.cmdline())
    ]


def test_no_order_is_lost_whatever_the_seed_brings(arena: Path, tmp_path: Path) -> None:
    report = tmp_path / "chaos.html"
    chosen = [part for name in PLAYED for part in ("--scenario", name)]
    load = ("--orders", "200", "--rate", "30", "--cancel", "0.2", "--seed", str(SEED))
    env = {"BREW_HOME": str(arena)}
    done = run("chaos", *chosen, *load, "--json", "--report", str(report), env=env, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {result["scenario"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert set(results) == set(PLAYED)
    for scenario in SCENARIOS:
        if scenario.name not in results:
            continue
        result = results[scenario.name]
        assert result["plan"] == [str(step) for step in scenario.plan(chance(SEED, scenario.name), 6.0, STORY)]
        assert result["acknowledged"] >= 150, "there was no load"
        assert [result[name] for name in ("ok", "lost", "missing", "doubled", "findings")] == [True, 0, 0, 0, []]
        assert result["refused"] > 0, "no call was refused: nothing was tested"
        assert result["refused_written"] == 0
        cancels = result["cancels"]
        assert cancels["acknowledged"] >= 30, "there were no cancels"
        assert cancels["refused"] > 0, "no cancel was refused: nothing was tested"
        assert (cancels["not_cancelled"], cancels["refused_cancelled"]) == (0, 0)
    assert results["kill-publisher"]["repeats"] > 0, "no batch came twice: nothing was tested"
    page = report.read_text()
    assert all(name in page for name in PLAYED)
    assert f"--seed {SEED}" in page
    assert "--cancel 0.2" in page
    assert "cancels acknowledged" in page
    assert all(row["answers"] for row in status(arena).values())


def test_an_order_and_a_cancel_that_vanish_are_named(arena: Path) -> None:
    """The verdict relies on what the client was told, not on what the tables say of themselves."""
    arguments = ("--scenario", "kill-order", "--orders", "200", "--cancel", "0.2", "--seed", "1")
    process = begin("chaos", *arguments, env={"BREW_HOME": str(arena)})
    with psycopg.connect(environment(arena)["BREW_DATABASE_URL"], autocommit=True) as connection:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "kill -9" in line and " s  " in line:
                    break
            find = "SELECT order_id FROM notifications_log WHERE state = %s ORDER BY created_at LIMIT 1"
            row = connection.execute(find, ("created",)).fetchone()
            cancelled = connection.execute(find, ("cancelled",)).fetchone()
            assert row is not None
            assert cancelled is not None
            undo = "UPDATE orders SET status = 'ORDER_STATUS_NEW', cancelled_at = NULL WHERE id = %s"
            connection.execute(undo, cancelled)
            connection.execute(
                "INSERT INTO parked_events"
                ' (consumer, key, outbox_id, event_type, topic, partition, "offset", written_ms, value, headers,'
                " reason, attempts, outcome)"  # redriven: it would wait for minutes for an event that is parked
                " VALUES ('inventory', 'order-1', 9000, 'order.created', 'any', 0, 0, 0, '', '[]', 'postgres died', 1,"
                " 'redriven')"
            )
            for table in ("notifications_log", "inventory_reservations"):
                connection.execute(f"DELETE FROM {table} WHERE order_id = %s", row)
            connection.execute("DELETE FROM outbox WHERE aggregate_id = %s", (f"order-{row[0]}",))
            connection.execute("DELETE FROM orders WHERE id = %s", row)
            shown, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 1, errors
    assert f"order {row[0]} was acknowledged and is not there" in errors
    assert f"the cancel of order {cancelled[0]} was acknowledged, and it is not cancelled" in errors
    assert "outbox 9000 was parked by inventory: postgres died" in errors
    assert "brewctl: kill-order failed" in errors.splitlines()[-1]
    assert "FAILED" in shown


def test_an_interrupted_chaos_heals_what_it_broke(arena: Path) -> None:
    """The other signals end it the same way: see the demo's tests."""
    process = begin("chaos", "--scenario", "zombie", "--seed", "1", env={"BREW_HOME": str(arena)})
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "SIGSTOP" in line and " s  " in line:
                break
        nodes = nodes_of(process)
        assert len(nodes) == 5
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    wait_until("the end of all nodes", lambda: not any(node.is_running() for node in nodes), timeout_s=10)
    assert all(row["answers"] for row in status(arena).values())


def test_chaos_breaks_nobody_elses_servers(arena: Path) -> None:
    env = {**environment(arena), "BREW_HOME": str(arena)}
    refused = run("chaos", "--scenario", "kill-broker", env=env)
    assert refused.returncode == 2
    assert refused.stderr.startswith("brewctl: chaos breaks servers: it runs on the sandbox alone")
    assert brewctl(arena, "counts").returncode == 0
