"""A server goes away under running roles: orders are accepted as long as PostgreSQL is there, and all catch up."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from brewctl import overview
from brewctl.config import Settings, resolve
from brewctl.delivery import database
from brewctl.delivery.schema import setup
from brewctl.delivery.topics import topics
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lifecycle import wait_until
from tests.acceptance.conftest import brewctl, environment, pid
from tests.conftest import begin
from tests.terminal import opened


@pytest.fixture
def settings(home: Path) -> Settings:
    return resolve({}, environment(home), {})


@pytest.fixture
def nodes(settings: Settings, tmp_path: Path) -> Iterator[Nodes]:
    with database.connect(settings) as connection:
        setup.initialize(connection, reset=True)
    # A test before may have ended a consumer that could not leave its group: it is a member until its session ends.
    topics.await_empty_groups(settings, timeout_s=60)
    topics.create(settings, recreate=True)
    with Nodes(settings, logs=tmp_path, on_line=lambda _line: None) as nodes:
        yield nodes


def serve(nodes: Nodes) -> tuple[Node, str]:
    node = nodes.start(f"order-{len(nodes.started)}", "serve", "order", "--port", "0")
    node.wait_for("listening", lambda node: any("listening" in line for line in node.lines))
    return node, node.address


def kill(home: Path, name: str) -> None:
    process = psutil.Process(pid(home, name))
    os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)


def counts(settings: Settings) -> overview.Counts:
    with database.connect(settings) as connection:
        return overview.counts(connection)


def test_orders_are_accepted_without_kafka_and_published_when_it_is_back(
    home: Path, settings: Settings, nodes: Nodes
) -> None:
    node, address = serve(nodes)
    kill(home, "kafka-1")
    try:
        assert brewctl(home, "create-order", "--customer", "c1", "--count", "30", "--addr", address).returncode == 0
        # A replica that is started meanwhile serves too.
        late, late_address = serve(nodes)
        assert brewctl(home, "create-order", "--customer", "c1", "--count", "5", "--addr", late_address).returncode == 0
        late.wait_for("its warning", lambda node: "kafka_unreachable" in node.log.read_text())
        assert counts(settings) == overview.Counts(35, 35, 0, 0)
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            # Publishing was tried, and no transaction stays open over the outage.
            wait_until("no open transaction", lambda: idle_transactions(connection) == 0, timeout_s=20)
    finally:
        assert brewctl(home, "up").returncode == 0
    wait_until("an empty outbox", lambda: counts(settings).outbox_unpublished == 0, timeout_s=60)
    # They ended their transactions themselves: PostgreSQL's own bound is for publishers that stand still.
    assert "idle-in-transaction" not in node.log.read_text() + late.log.read_text()
    nodes.start("inventory-1", "consume", "inventory")
    wait_until("all reserved", lambda: counts(settings).reservations == 35, timeout_s=60)


def idle_transactions(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


def test_running_roles_outlive_a_crash_of_postgres(home: Path, settings: Settings, nodes: Nodes) -> None:
    node, address = serve(nodes)
    consumer = nodes.start("inventory-1", "consume", "inventory")
    consumer.wait_for("partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5])
    assert brewctl(home, "create-order", "--customer", "c1", "--count", "5", "--addr", address).returncode == 0
    kill(home, "postgres")
    try:
        away = brewctl(home, "create-order", "--customer", "c1", "--addr", address, "--timeout", "1")
        assert away.returncode == 3
        assert "UNAVAILABLE: the database is away: retry" in away.stderr
        # One that is asked meanwhile waits for the return.
        with ThreadPoolExecutor(1) as pool:
            order = ("create-order", "--customer", "c1", "--addr", address, "--timeout", "120")
            patient = pool.submit(brewctl, home, *order)
            assert brewctl(home, "up").returncode == 0
            assert patient.result(120).returncode == 0
    finally:
        assert brewctl(home, "up").returncode == 0
    wait_until("six reservations", lambda: counts(settings).reservations == counts(settings).orders >= 6, timeout_s=60)
    assert node.alive
    assert consumer.alive
    assert_said_once(node)


def assert_said_once(node: Node) -> None:
    """However long it was, an outage is a line when it begins and one when it ends."""
    log = node.log.read_text()
    assert (log.count("event=database_away"), log.count("event=database_back")) == (1, 1), log


def test_a_postgres_that_stands_still_is_away_until_it_goes_on(home: Path, settings: Settings, nodes: Nodes) -> None:
    node, address = serve(nodes)
    consumer = nodes.start("inventory-1", "consume", "inventory")
    consumer.wait_for("partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5])
    order = ("create-order", "--customer", "c1", "--addr", address)
    assert brewctl(home, *order).returncode == 0
    postmaster = psutil.Process(pid(home, "postgres"))
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        node.wait_for("its warning", lambda node: "event=database_away" in node.log.read_text())
        refused = brewctl(home, *order, "--timeout", "1")
        assert refused.returncode == 3
        assert "UNAVAILABLE: the database is away: retry" in refused.stderr
    finally:
        for process in processes:
            process.resume()
    assert brewctl(home, *order, "--timeout", "60").returncode == 0
    wait_until("both reservations", lambda: counts(settings).reservations == 2, timeout_s=60)
    assert counts(settings).orders == 2
    assert_said_once(node)


def test_roles_drain_though_kafka_is_away(home: Path, nodes: Nodes) -> None:
    server, _ = serve(nodes)
    consumer = nodes.start("inventory-1", "consume", "inventory")
    consumer.wait_for("partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5])
    kill(home, "kafka-1")
    try:
        assert nodes.stop() == []
        assert "inventory-service stopped. processed=0" in consumer.lines[-1]
        assert "order-service stopped" in server.lines[-1]
    finally:
        assert brewctl(home, "up").returncode == 0


def test_a_consumer_without_kafka_says_so(home: Path) -> None:
    kill(home, "kafka-1")
    try:
        refused = brewctl(home, "consume", "inventory", "--node", "inventory-1")
        assert refused.returncode == 3
        assert refused.stderr.startswith("brewctl: kafka 127.0.0.1:")
        assert "`brewctl up`" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert brewctl(home, "topic", "create").returncode == 3
    finally:
        assert brewctl(home, "up").returncode == 0


def test_a_watch_of_the_groups_outlasts_kafka(home: Path, settings: Settings, tmp_path: Path) -> None:
    """In a pipe it says so on stderr, in a terminal in place; then it goes on."""
    topics.create(settings)
    said = tmp_path / "stderr"
    watch = ("groups", "--watch")
    env = {"BREW_HOME": str(home)}
    broker = psutil.Process(pid(home, "kafka-1"))
    away = "does not answer: trying again"
    with (
        said.open("w") as stderr,
        begin(*watch, "--json", env=env, stderr=stderr.fileno()) as piped,
        opened(*watch, env=env) as terminal,
    ):
        assert piped.stdout is not None
        try:
            assert "inventory" in piped.stdout.readline()
            terminal.wait_for("inventory", "notifications")
            broker.suspend()
            wait_until("the outage", lambda: away in said.read_text(), timeout_s=30)
            terminal.wait_for("notifications", away)
        finally:
            broker.resume()
        wait_until("its end", lambda: "kafka answers again" in said.read_text(), timeout_s=30)
        terminal.wait_until("its end", lambda: away not in terminal.text and "notifications" in terminal.text)
        for process in (terminal.process, piped):
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
    _, *rest = said.read_text().splitlines()
    assert rest == ["brewctl: kafka answers again", "brewctl: interrupted"]


@pytest.mark.parametrize("server", ["postgres", "kafka-1"])
def test_a_paused_server_holds_up_no_stop(home: Path, settings: Settings, nodes: Nodes, server: str) -> None:
    """It takes what is sent and says nothing. A drain is 10 s, and what comes after it is bounded too."""
    order, address = serve(nodes)
    inventory = nodes.start("inventory-1", "consume", "inventory")
    inventory.wait_ready()
    assert brewctl(home, "create-order", "--customer", "c1", "--count", "20", "--addr", address).returncode == 0
    process = psutil.Process(pid(home, server))
    paused = [process, *process.children(recursive=True)]
    for each in paused:
        each.suspend()
    try:
        for node in (order, inventory):
            node.process.send_signal(signal.SIGTERM)
        assert {node.process.wait(25) for node in (order, inventory)} <= {0, 1}
    finally:
        for each in paused:
            each.resume()
    nodes.start("inventory-2", "consume", "inventory")
    serve(nodes)
    whole = overview.Counts(20, 0, 20, 0)
    wait_until("all published and reserved", lambda: counts(settings) == whole, timeout_s=60)
