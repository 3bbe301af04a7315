"""`brewctl metrics`: what it says of the whole flow, and what it does not say of a server that is away."""

import dataclasses
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.delivery.broker import Producer, Record, open_admin
from brewctl.delivery.inbox import dead_letter
from brewctl.errors import UnreachableError
from brewctl.exporter.collector import Collector
from brewctl.exporter.letters import LetterCounter
from brewctl.lab.network.proxy import Proxy
from brewctl.lifecycle import wait_until
from brewctl.sql import exporter_queries
from tests.conftest import Rig, begin
from tests.integration.kafka_tools import good_record, remove_records
from tests.integration.outbox_tools import create_order, unpublished
from tests.scraping import Page

OUTBOX = {"brew_outbox_rows", "brew_outbox_oldest_seconds"}
LAG = {"brew_group_lag_records", "brew_group_lag_seconds", "brew_group_members", "brew_group_overtaken_records"}


@pytest.fixture
def collector(rig: Rig) -> Iterator[Collector]:
    with Collector(rig.settings, within_s=30).looking() as collector:
        yield collector


def page(collector: Collector) -> Page:
    return Page(collector.page().decode())


def awaited(collector: Collector, what: str, name: str, wanted: dict[str, float]) -> None:
    """Wait until the series of a metric are these: looks are shared for a second."""
    wait_until(what, lambda: page(collector).of(name) == wanted, timeout_s=30)


def send(rig: Rig, *records: Record) -> None:
    producer = Producer(rig.settings, node="test")
    try:
        assert not [each for each in producer.send(list(records), timeout_s=30) if isinstance(each, Exception)]
    finally:
        producer.close()


def test_rows_that_wait_and_rows_that_are_set_aside(rig: Rig, collector: Collector) -> None:
    assert page(collector).value("brew_outbox_oldest_seconds") == 0
    for _ in range(3):
        create_order(rig)
    rig.connection.execute("UPDATE outbox SET created_at = created_at - interval '90 s'")
    rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = %s", (unpublished(rig)[0],))
    awaited(collector, "the rows", "brew_outbox_rows", {"ready": 2, "set_aside": 1})
    assert 90 <= (page(collector).value("brew_outbox_oldest_seconds") or 0) < 600
    rig.connection.execute("UPDATE outbox SET published_at = now(), failed_at = NULL")
    awaited(collector, "no rows", "brew_outbox_rows", {"ready": 0, "set_aside": 0})
    awaited(collector, "none that waits", "brew_outbox_oldest_seconds", {"": 0})


def test_parked_events_and_replicas(rig: Rig, collector: Collector) -> None:
    assert page(collector).of("brew_parked_events") == {"inventory": 0, "notifications": 0}
    rig.connection.execute(
        'INSERT INTO parked_events (consumer, key, outbox_id, event_type, topic, "partition", "offset", written_ms,'
        " value, headers, reason, attempts, outcome) SELECT 'inventory', 'k', id, 'order.created', 't', 0, id, 0, '',"
        " '[]', 'broken', 1, CASE WHEN id > 2 THEN 'dropped' END FROM generate_series(1, 5) id"
    )
    rig.connection.execute(
        "INSERT INTO nodes (node_id, role, host, pid, address, started_at, seen_at) VALUES"
        " ('order-1', 'order', 'h', 1, '', now(), now() + interval '1 h'),"
        " ('order-2', 'order', 'h', 1, '', now(), now() - interval '1 h')"
    )
    awaited(collector, "the events", "brew_parked_events", {"inventory": 2, "notifications": 0})
    assert page(collector).of("brew_replicas") == {"order": 1, "publisher": 0, "inventory": 0, "notifications": 0}


def test_how_far_a_group_is_behind(rig: Rig, collector: Collector) -> None:
    assert page(collector).of("brew_group_lag_seconds") == {"inventory": 0, "notifications": 0}
    topic = rig.settings.topic
    good = good_record()
    long_ago_ms = int((time.time() - 300) * 1000)
    send(rig, *(Record(topic, good.key, good.value, good.headers, timestamp_ms=long_ago_ms) for _ in range(3)))
    send(rig, Record(topic, good.key, good.value, good.headers))
    wait_until("the lag", lambda: sum(page(collector).of("brew_group_lag_records").values()) == 8, timeout_s=30)
    ages = page(collector).of("brew_group_lag_seconds")
    assert all(300 <= age < 600 for age in ages.values()), ages
    with open_admin(rig.settings) as admin:
        ends = {partition: end for partition, (_, end) in admin.ends(topic).items()}
        last = {partition: max(0, end - 1) for partition, end in ends.items()}
        admin.commit("inventory", topic, last)
        admin.commit("notifications", topic, ends)
    wait_until("the lag", lambda: sum(page(collector).of("brew_group_lag_records").values()) == 1, timeout_s=30)
    found = page(collector).of("brew_group_lag_seconds")
    assert found["notifications"] == 0
    assert 0 < found["inventory"] < 300, "the record that is next is a new one"
    assert page(collector).of("brew_group_members") == {"inventory": 0, "notifications": 0}


def test_records_that_were_removed_before_a_group_read_them(rig: Rig, collector: Collector) -> None:
    topic = rig.settings.topic
    good = good_record()
    send(rig, *(Record(topic, good.key, good.value, good.headers) for _ in range(3)))
    with open_admin(rig.settings) as admin:
        (at,) = [partition for partition, (_, end) in admin.ends(topic).items() if end]
        admin.commit("inventory", topic, {at: 1})
    remove_records(rig.settings)
    awaited(collector, "the gap", "brew_group_overtaken_records", {"inventory": 2, "notifications": 0})


def test_dead_letters_by_what_became_of_them(rig: Rig, collector: Collector) -> None:
    none = {
        f"{group} {state}": 0.0 for group in ("inventory", "notifications") for state in ("open", "redriven", "dropped")
    }
    assert page(collector).of("brew_dead_letters") == none
    dead = Record(rig.settings.topic, b"k", b"rubbish", [], 0, 0)
    letters = [
        dead_letter.letter_for(dead, "unreadable", group=group, topic=rig.settings.dead_letter_topic)
        for group in ("inventory", "inventory", "strangers")
    ]
    send(rig, *letters)
    strange = {"strangers open": 1.0, "strangers redriven": 0.0, "strangers dropped": 0.0}
    awaited(collector, "the letters", "brew_dead_letters", none | strange | {"inventory open": 2})
    assert rig.brewctl("dlq", "drop", "--group", "inventory", "--yes").returncode == 0
    settled = none | strange | {"inventory dropped": 2}
    awaited(collector, "the dropped ones", "brew_dead_letters", settled)
    with Collector(rig.settings, within_s=30).looking() as another:
        assert page(another).of("brew_dead_letters") == settled, "one that starts later reads what was settled"


def test_dead_letters_that_can_not_be_read_are_said_to_be_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though both servers answer: as where another producer has left a transaction open."""

    def gives_nothing(*_: object) -> None:
        raise UnreachableError("kafka gave nothing more")

    monkeypatch.setattr(LetterCounter, "look", gives_nothing)
    with Collector(rig.settings, within_s=30).looking() as collector:
        found = page(collector)
    assert found.of("brew_up") == {"postgres": 1, "kafka": 1}
    assert found.value("brew_exporter_question_up", server="kafka", question="dead_letters") == 0
    assert "brew_dead_letters" not in found.names()


def test_the_oldest_transaction_of_another(rig: Rig, collector: Collector) -> None:
    with psycopg.connect(rig.settings.database_url) as other:
        other.execute("SELECT 1")
        wait_until(
            "its age",
            lambda: (page(collector).value("brew_postgres_oldest_transaction_seconds", server="postgres") or 0) > 1,
            timeout_s=30,
        )
    awaited(collector, "its end", "brew_postgres_oldest_transaction_seconds", {"postgres": 0})


def test_a_reader_needs_no_more_than_to_read(rig: Rig) -> None:
    """What the user may not see is left out, and never zero."""
    name = f"reader_{uuid.uuid4().hex[:8]}"
    rig.connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'".encode())
    settings = dataclasses.replace(
        rig.settings, database_url=make_conninfo(rig.settings.database_url, user=name, password="secret")
    )
    try:
        rig.connection.execute(f"GRANT SELECT ON outbox, nodes, dead_letters_settled TO {name}".encode())
        with Collector(settings, within_s=30).looking() as collector:
            found = page(collector)
            assert found.value("brew_exporter_question_up", server="postgres", question="parked_events") == 0
            assert "brew_parked_events" not in found.names()
            assert "brew_postgres_oldest_transaction_seconds" not in found.names()
            assert found.names() >= OUTBOX | {"brew_dead_letters"}
            assert found.value("brew_up", server="postgres") == 1
            rig.connection.execute(
                f"GRANT SELECT ON parked_events TO {name}; GRANT pg_read_all_stats TO {name}".encode()
            )
            awaited(collector, "all", "brew_parked_events", {"inventory": 0, "notifications": 0})
            assert "brew_postgres_oldest_transaction_seconds" in page(collector).names()
    finally:
        rig.connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


@pytest.mark.parametrize("away", ["database_url", "brokers"])
def test_a_server_that_is_away_at_the_start(rig: Rig, away: str) -> None:
    nowhere = {"database_url": "postgresql://brew@127.0.0.1:1/brew", "brokers": ("127.0.0.1:1",)}
    settings = dataclasses.replace(rig.settings, **{away: nowhere[away]})  # type: ignore[arg-type]
    with Collector(settings).looking() as collector:
        found = page(collector)
    gone, there = (OUTBOX, LAG) if away == "database_url" else (LAG, OUTBOX)
    assert found.of("brew_up") == {"postgres": away != "database_url", "kafka": away != "brokers"}
    assert found.names() >= there
    assert not found.names() & {*gone, "brew_dead_letters"}


def test_a_server_that_falls_silent_and_comes_back(rig: Rig) -> None:
    """Its old numbers are not shown again, no scrape waits for it, and the other server's are there."""
    parts = psycopg.conninfo.conninfo_to_dict(rig.settings.database_url)
    with Proxy("postgres", (str(parts["host"]), int(parts["port"] or 0))) as proxy:
        settings = dataclasses.replace(
            rig.settings, database_url=make_conninfo(rig.settings.database_url, host="127.0.0.1", port=proxy.port)
        )
        create_order(rig)
        with Collector(settings, within_s=4).looking() as collector:
            wait_until("a look", lambda: page(collector).value("brew_up", server="postgres") == 1, timeout_s=30)
            assert page(collector).of("brew_outbox_rows") == {"ready": 1, "set_aside": 0}
            proxy.black_hole()

            def silent() -> bool:
                found = page(collector)
                # Whatever the moment: either it answered, or nothing is said of it.
                assert (found.value("brew_up", server="postgres") == 1) == ("brew_outbox_rows" in found.names())
                assert found.value("brew_up", server="kafka") == 1
                return found.value("brew_up", server="postgres") == 0

            wait_until("silence", silent, timeout_s=30)
            proxy.heal()
            awaited(collector, "its answers", "brew_outbox_rows", {"ready": 1, "set_aside": 0})


def test_without_tables_the_servers_are_up_and_the_questions_are_not(rig: Rig, servers: dict[str, str]) -> None:
    url = servers["BREW_DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as maintenance:
        name = f"brew_empty_{uuid.uuid4().hex[:8]}"
        maintenance.execute(f"CREATE DATABASE {name}".encode())
        try:
            env = {**rig.env, "BREW_DATABASE_URL": make_conninfo(url, dbname=name)}
            once = subprocess_once(rig, env)
        finally:
            maintenance.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    found = Page(once.stdout)
    assert once.returncode == 1
    assert found.of("brew_up") == {"postgres": 1, "kafka": 1}
    assert found.value("brew_exporter_question_up", server="postgres", question="outbox_rows") == 0
    assert not found.names() & OUTBOX
    assert found.names() >= LAG
    (line,) = once.stderr.splitlines()
    assert line.startswith("brewctl: metrics are left out: postgres ")
    assert "brewctl db init" in line


def subprocess_once(rig: Rig, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return dataclasses.replace(rig, env=env).brewctl("metrics", "--once")


def test_once_prints_the_page_and_says_which_server_is_away(rig: Rig) -> None:
    done = rig.brewctl("metrics", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert Page(done.stdout).names() >= OUTBOX | LAG
    away = subprocess_once(rig, {**rig.env, "BREW_DATABASE_URL": "postgresql://brew:hidden@127.0.0.1:1/brew"})
    assert away.returncode == 3
    assert Page(away.stdout).of("brew_up") == {"postgres": 0, "kafka": 1}
    (line,) = away.stderr.splitlines()
    assert line.startswith("brewctl: postgres 127.0.0.1:1/brew refused the connection: ")
    assert "hidden" not in away.stdout + away.stderr


def test_it_serves_scrapers_and_probes_until_it_is_told_to_stop(rig: Rig) -> None:
    process = begin("metrics", "--http", "127.0.0.1:0", env=rig.env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.rsplit(":", 1)[1])
        url = f"http://127.0.0.1:{port}"
        # One that connects and says nothing delays no other.
        with socket.create_connection(("127.0.0.1", port)):
            assert Page(urllib.request.urlopen(f"{url}/metrics").read().decode()).names() >= OUTBOX | LAG
            for probe in ("livez", "readyz"):
                assert urllib.request.urlopen(f"{url}/{probe}").status == 200
            taken = rig.brewctl("metrics", "--http", f"127.0.0.1:{port}")
            assert taken.returncode == 1
            assert taken.stderr.startswith(
                f"brewctl: port {port} on 127.0.0.1 can't be listened on (address already in use)"
            )
            assert len(taken.stderr.splitlines()) == 1
            process.send_signal(signal.SIGTERM)
            _, problem = process.communicate(timeout=60)
        assert (process.returncode, problem) == (0, "")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["oldest", "waiting", "parked_by_consumer", "last_processed"])
def test_no_question_reads_a_table_from_one_end_to_the_other(rig: Rig, name: str) -> None:
    """Whatever the statistics say: here that nearly all rows wait, as they do after a backlog."""
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) SELECT 'a' || n, 't', 'x' FROM generate_series(1, 5000) n"
    )
    rig.connection.execute("ANALYZE outbox")
    rig.connection.execute("UPDATE outbox SET published_at = now() WHERE id % 1000 <> 0")
    asked = {"most": 1_000_000, "consumers": ["inventory"]}
    with rig.connection.transaction():
        rig.connection.execute(exporter_queries["bounded"], {"timeout": "2000"})
        rows = rig.connection.execute("EXPLAIN " + exporter_queries[name], asked).fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert "Index" in plan
    assert "Seq Scan" not in plan


def test_a_downstream_with_a_database_of_its_own(rig: Rig, servers: dict[str, str]) -> None:
    url = servers["BREW_DATABASE_URL"]
    name = f"brew_own_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as maintenance:
        maintenance.execute(f"CREATE DATABASE {name}".encode())
        try:
            own = make_conninfo(url, dbname=name)
            assert rig.brewctl("db", "init", "inventory").returncode == 0
            apart = dataclasses.replace(rig, env={**rig.env})
            apart.move("notifications", own)
            assert apart.brewctl("db", "init", "notifications").returncode == 0
            with Collector(apart.settings, within_s=30).looking() as collector:
                found = page(collector)
                assert found.of("brew_up") == {"postgres": 1, "postgres-notifications": 1, "kafka": 1}
                assert found.of("brew_parked_events") == {"inventory": 0, "notifications": 0}
                with psycopg.connect(own) as there:  # another outbox's ids are not what comes next
                    there.execute("SELECT make_partition('processed_events', 1000000000)")
                    there.execute(
                        "INSERT INTO processed_events (consumer, outbox_id) VALUES ('notifications', 1000000000)"
                    )
                asked = {"server": "postgres-notifications", "table": "processed_events"}
                wait_until("a partition", lambda: page(collector).value("brew_partitions", **asked) == 6, timeout_s=30)
                assert page(collector).value("brew_partitions_ahead", **asked) == 4
                maintenance.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
                awaited(collector, "its absence", "brew_up", {"postgres": 1, "postgres-notifications": 0, "kafka": 1})
                assert page(collector).of("brew_parked_events") == {"inventory": 0}
        finally:
            maintenance.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
