"""Every leg of the bench on real servers, in small: what it measures is there, beside a floor that was measured too."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import LiteralString

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.delivery import registry
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.errors import BrewError
from brewctl.lab.bench import (
    LEGS,
    cpu,
    create,
    drains,
    flow,
    growth,
    machine,
    memory,
    migrate,
    queue,
    startup,
    table,
    workers,
)
from brewctl.lab.bench.ground import Ground, Sizes
from brewctl.lab.bench.handlers import TABLE
from brewctl.lab.play.cast import STORY
from brewctl.lifecycle import wait_until
from brewctl.sandbox import tools
from tests.conftest import Rig

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def ground(rig: Rig, tmp_path: Path) -> Ground:
    logs = tmp_path / "bench"
    return Ground(rig.settings, rig.connection, logs=logs, tell=lambda _text: None, sizes=Sizes(soak_s=6, soak_rate=20))


@pytest.fixture(autouse=True)
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[ModuleType, dict[str, object]] = {
        create: {"_SECONDS": 1, "_WARMUP_S": 0.1, "_IN_FLIGHT": (1, 64)},
        drains: {"WAITING": 3000, "_ONE_BY_ONE": 50, "_TURNS": 1},
        flow: {"_SECONDS": 1.0, "_OPEN_SECONDS": 1.0, "_WARMUP_S": 0.2, "_IN_FLIGHT": (8,), "_RATES": (100.0,)},
        memory: {"_ORDERS": 1500, "_WARM": 10, "_LOOK_S": 0.01},
        queue: {"_ROWS": 400, "_AGGREGATES": (3,), "_FILLED_AT_ONCE": 150, "_SECONDS": 1.0, "_WARMUP_S": 0.2},
        workers: {"_SECONDS": 1.0, "_WARMUP_S": 0.2},
        growth: {
            "_FEW": 100,
            "_MANY": 2000,
            "_DEAD": 500,
            "_FILLED_AT_ONCE": 500,
            "_SECONDS": 1,
            "_WARMUP_S": 0.1,
            "_DRAINS": 1,
        },
        startup: {"_RUNS": 1},
        migrate: {"DEFAULT_ROWS": 1000, "_BEFORE_S": 0.5},
    }
    for module, sizes in small.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize(
    ("leg", "names"),
    [
        ("create", {"create p50, 1 in flight", "create, 64 in flight", "create p99, 64 in flight"}),
        ("publish", {"publisher drain", "publisher drain against Java"}),
        (
            "consume",
            {f"consumer drain, {what}" for what in ("one node", "two nodes", "batch form", "event form")}
            | {"consumer drain against one by one"},
        ),
        (
            "flow",
            {"flow, 8 in flight", "flow create p50, 8 in flight", "flow, 100 orders/s", "flow, half load"}
            | {f"end to end p99, {load}" for load in ("8 in flight", "100 orders/s", "half load")}
            | {f"CPU of {part}, 100 orders/s" for part in ("order nodes", "consumers", "Kafka", "PostgreSQL")}
            | {"cores busy, half load"},
        ),
        ("workers", {"one worker", "2 workers", "2 workers against one", "create p99, 2 workers"}),
        ("memory", {f"memory of {name}" for name in STORY.nodes}),
        ("startup", {"brewctl --help", "brewctl create-order"}),
        ("migrate", {"migrate, 1,000 orders", "slowest order, before", "slowest notification, migrating"}),
        ("growth", {"create, a million orders", "publisher drain, a million rows"}),
        (
            "queue",
            {
                "queue, an aggregate each",
                "queue, 3 aggregates",
                "queue, an old snapshot",
                "delay to Kafka, an old snapshot",
            },
        ),
        (
            "soak",
            {f"soak, {what}" for what in ("outbox", "processed_events", "records in the topic", "WAL", "create p99")}
            | {f"soak, memory of {name}" for name in STORY.nodes},
        ),
    ],
)
def test_a_leg_measures_itself_and_its_floor(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, leg: str, names: set[str]
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    figures = list(LEGS[leg](ground))
    assert names <= {figure.name for figure in figures}
    for figure in figures:
        assert len(figure.name) <= table.NAME_COLUMNS
        assert (figure.value or 0) > 0 or figure.optional, figure
        assert (figure.floor or 0) > 0 or not figure.floor_name, figure


def test_each_form_of_the_bench_has_the_effects_of_inventory_and_leaves_nothing_behind(
    ground: Ground, pool: Pool
) -> None:
    ground.let_wait(20)
    records = drains._records(ground)

    def effects_of(name: str, table: LiteralString) -> list[tuple[object, ...]]:
        inbox = Inbox(ground.settings, pool, registry.find(name), node="test")
        inbox.handle(records)
        inbox.close()
        return ground.connection.execute(f"SELECT order_id, seq FROM {table} ORDER BY 1".encode()).fetchall()

    expected = effects_of("inventory", "inventory_reservations")
    assert len(expected) == 20
    for name in drains.HANDLERS.values():
        with contextlib.suppress(KeyboardInterrupt), drains._tables(ground):
            assert effects_of(name, TABLE) == expected
            raise KeyboardInterrupt  # the user's
        assert ground.connection.execute(
            "SELECT to_regclass(%s), (SELECT count(*) FROM downstreams)", [TABLE]
        ).fetchone() == (None, 0)


def test_pgbench_whose_clients_connect_for_longer_than_it_runs_runs_for_longer(ground: Ground, tmp_path: Path) -> None:
    slow = make_conninfo(ground.settings.database_url, options="-c post_auth_delay=1")
    try:
        psycopg.connect(slow).close()
    except psycopg.Error:
        pytest.skip("the database user may not slow connections down")
    script = tmp_path / "one.sql"
    script.write_text("SELECT 1;", "utf-8")
    told: list[str] = []
    slowed = Ground(replace(ground.settings, database_url=slow), ground.connection, logs=tmp_path, tell=told.append)
    measured = create._insert(slowed, script, 2)
    assert measured
    assert measured.per_s > 0
    assert told[:2] == ["pgbench, 2 clients"] * 2


def test_what_brings_no_figure_is_missing_and_the_rest_is_there(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise BrewError("pgbench failed: too many clients")

    monkeypatch.setattr(tools, "pgbench", failing)
    monkeypatch.setattr(create, "_IN_FLIGHT", (1,))
    figures = {figure.name: figure for figure in create.run(ground)}
    assert figures["create p50, 1 in flight"].floor
    for name in ("create p50, no publisher", "create against SQL, 1 in flight"):
        assert figures[name].value
        assert figures[name].floor is None
    assert figures["create, 1 in flight"].floor


def test_without_kafkas_tools_that_floor_is_missing_and_the_rest_is_there(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise BrewError("can't download")

    monkeypatch.setattr(tools, "KafkaTools", absent)
    floors = {figure.name: figure.floor for figure in drains.publish(ground)}
    assert floors["publisher drain against Java"] is None
    assert floors["publisher drain"]


def test_a_backend_that_has_ended_is_part_of_what_postgresql_spent(ground: Ground) -> None:
    url = ground.settings.database_url
    with psycopg.connect(url) as connection:
        backend = connection.info.backend_pid
        if not _is_here(backend):
            pytest.skip("PostgreSQL runs on another machine")
        server = [psutil.Process(backend).ppid()]
        before, before_it = cpu.spent_s(server), cpu.spent_s([backend])
        connection.execute("SELECT count(*) FROM generate_series(1, 2000000)")
        of_query = cpu.spent_s([backend]) - before_it
    wait_until("the backend's end", lambda: not _is_here(backend), timeout_s=30)
    assert of_query > 0
    assert cpu.spent_s(server) >= before + of_query - 2 * TICK_S


def _is_here(backend: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return "postgres" in psutil.Process(backend).name()
    return False


def test_a_node_is_told_which_kafka_client_to_use(ground: Ground) -> None:
    with ground.nodes("order-1", env={"BREW_KAFKA_CLIENT": "kafka-python-ng"}) as (node,):
        assert psutil.Process(node.process.pid).environ()["BREW_KAFKA_CLIENT"] == "kafka-python-ng"
