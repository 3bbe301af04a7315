"""`--wait`: what a role does whose servers, tables or topic come later."""

import dataclasses
import re
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.config import Settings, environment
from brewctl.delivery import broker
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.sandbox.processes import free_port
from tests.conftest import Rig, begin, run
from tests.tcp_proxy import proxied

WAIT_S = 120
ROLES = {
    "order": ("serve", "order", "--port", "0"),
    "workers": ("serve", "order", "--port", "0", "--workers", "2"),
    "publisher": ("publish",),
    "consumer": ("consume", "inventory"),
}
each_role = pytest.mark.parametrize("command", ROLES.values(), ids=ROLES)


def said(node: Node) -> list[str]:
    """What it has said that it waits for."""
    return re.findall(r'event=waits reason="([^"]*)"', node.log.read_text("utf-8"))


def await_word(node: Node, words: str) -> None:
    wait_until(words, lambda: any(words in reason for reason in said(node)), timeout_s=WAIT_S)


def address_of(settings: Settings) -> tuple[str, int]:
    host, _, port = settings.brokers[0].rpartition(":")
    return host, int(port)


def test_a_consumer_is_there_before_kafka_topic_postgres_database_and_tables(rig: Rig, servers: dict[str, str]) -> None:
    name = f"late_{uuid.uuid4().hex[:12]}"
    server = conninfo_to_dict(servers["BREW_DATABASE_URL"])
    postgres_port, kafka_port = free_port(), free_port()
    late = dataclasses.replace(
        rig.settings,
        database_url=make_conninfo(servers["BREW_DATABASE_URL"], host="127.0.0.1", port=postgres_port, dbname=name),
        brokers=(f"127.0.0.1:{kafka_port}",),
        topic=f"late-{uuid.uuid4().hex[:12]}",
    )
    env = environment(late)
    with psycopg.connect(servers["BREW_DATABASE_URL"], autocommit=True) as maintenance, ExitStack() as stack:
        stack.callback(lambda: maintenance.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode()))
        node = Node(
            "inventory-1",
            ("consume", "inventory", "--wait", "forever"),
            late,
            log=rig.nodes._logs / "inventory-1.log",
            on_line=lambda _line: None,
        )
        stack.callback(node.kill)
        await_word(node, f"kafka 127.0.0.1:{kafka_port} does not answer")
        stack.enter_context(proxied(*address_of(rig.settings), at=kafka_port))
        await_word(node, "missing in kafka")
        assert run("topic", "create", env=env).returncode == 0
        stack.callback(lambda: delete_topics(late))
        await_word(node, f"postgres 127.0.0.1:{postgres_port}/{name} refused the connection")
        stack.enter_context(proxied(str(server["host"]), int(str(server["port"])), at=postgres_port))
        await_word(node, "has no such database or role")
        maintenance.execute(f"CREATE DATABASE {name}".encode())
        await_word(node, "missing in postgres: orders")
        assert run("db", "init", env=env).returncode == 0
        node.wait_ready(timeout_s=WAIT_S)
        assert len(said(node)) == len(set(said(node)))  # each reason once
        node.process.send_signal(signal.SIGTERM)
        assert node.ended(within_s=WAIT_S) == 0


def delete_topics(settings: Settings) -> None:
    with broker.open_admin(settings) as admin:
        for topic in (settings.topic, settings.dead_letter_topic):
            admin.delete_topic(topic)


@each_role
def test_each_role_starts_once_postgres_is_there(rig: Rig, command: tuple[str, ...]) -> None:
    server = conninfo_to_dict(rig.settings.database_url)
    port = free_port()
    late = dataclasses.replace(
        rig.settings, database_url=make_conninfo(rig.settings.database_url, host="127.0.0.1", port=port)
    )
    name = {"publish": "publisher-1", "serve": "order-1"}.get(command[0], "inventory-1")
    rig.nodes._settings = late
    node = rig.nodes.start(name, *command, "--wait", "600")
    await_word(node, "refused the connection")
    with proxied(str(server["host"]), int(str(server["port"])), at=port):
        node.wait_ready(timeout_s=WAIT_S)
        assert len(said(node)) == 1  # of several workers the first alone waits, and says so
        node.process.send_signal(signal.SIGTERM)
        assert node.ended(within_s=WAIT_S) == 0


@each_role
def test_once_time_is_up_it_ends_as_without(rig: Rig, command: tuple[str, ...]) -> None:
    away = dataclasses.replace(rig.settings, database_url="postgresql://somebody@127.0.0.1:1/brew")
    absent = dataclasses.replace(rig.settings, topic="absent")
    for settings, code in ((away, 3), (absent, 1))[: 1 if command[0] == "publish" else 2]:
        at_once = run(*command, env=environment(settings))
        later = run(*command, env={**environment(settings), "BREW_WAIT": "0.5"})
        assert at_once.returncode == later.returncode == code
        assert at_once.stderr.splitlines()[-1] == later.stderr.splitlines()[-1]
        assert "event=waits" not in at_once.stderr


@each_role
def test_what_no_waiting_mends_ends_at_once(rig: Rig, command: tuple[str, ...]) -> None:
    malformed = {**rig.env, "BREW_DATABASE_URL": "postgresql://127.0.0.1:port/brew"}
    done = run(*command, "--wait", "forever", env=malformed)
    assert done.returncode == 2
    assert "event=waits" not in done.stderr
    for wrong in ("soon", "-1", "nan", "inf", "1e9", "60s"):
        done = run(*command, env={**rig.env, "BREW_WAIT": wrong})
        assert done.returncode == 2
        assert f"--wait {wrong!r} is no number of seconds: use a number such as 60, or forever" in done.stderr


def test_a_taken_port_ends_at_once(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for workers in ("1", "2"):
            done = run(
                *("serve", "order", "--port", port, "--workers", workers, "--wait", "forever"),
                env=rig.env,
            )
            assert done.returncode == 1
            assert "can't be listened on" in done.stderr


@pytest.fixture
def silent() -> Iterator[tuple[int, threading.Event]]:
    """The port of a server that takes connections and says nothing, and whether one has come."""
    came = threading.Event()
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            try:
                while True:
                    taken.append(listener.accept()[0])
                    came.set()
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1]), came
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)
            for each in taken:
                each.close()


@each_role
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_wait(rig: Rig, command: tuple[str, ...], number: signal.Signals) -> None:
    away = dataclasses.replace(rig.settings, database_url="postgresql://somebody@127.0.0.1:1/brew")
    name = {"publish": "publisher-1", "serve": "order-1"}.get(command[0], "inventory-1")
    rig.nodes._settings = away
    node = rig.nodes.start(name, *command, "--wait", "forever")
    await_word(node, "refused the connection")
    node.process.send_signal(number)
    assert node.ended(within_s=WAIT_S) == 0


@each_role
def test_a_stop_ends_a_try_that_hangs(rig: Rig, silent: tuple[int, threading.Event], command: tuple[str, ...]) -> None:
    port, came = silent
    # The try alone would take an hour.
    hangs = dataclasses.replace(
        rig.settings, database_url=f"postgresql://somebody@127.0.0.1:{port}/brew?connect_timeout=3600"
    )
    process = begin(*command, "--wait", "forever", env=environment(hangs), stderr=subprocess.DEVNULL)
    assert process.stdout
    with process.stdout:
        try:
            assert came.wait(WAIT_S)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            process.wait()


def test_db_init_and_topic_create_wait_for_their_servers(rig: Rig, tmp_path: Path) -> None:
    server = conninfo_to_dict(rig.settings.database_url)
    postgres_port, kafka_port = free_port(), free_port()
    late = dataclasses.replace(
        rig.settings,
        database_url=make_conninfo(rig.settings.database_url, host="127.0.0.1", port=postgres_port),
        brokers=(f"127.0.0.1:{kafka_port}",),
    )
    for words, at, place in (
        (("db", "init"), postgres_port, (str(server["host"]), int(str(server["port"])))),
        (("topic", "create"), kafka_port, address_of(rig.settings)),
    ):
        notes = tmp_path / words[0]
        with notes.open("w") as stderr:
            process = begin(*words, "--wait", "forever", env=environment(late), stderr=stderr.fileno())
        wait_until("a word of it", lambda notes=notes: "waits: " in notes.read_text("utf-8"), timeout_s=WAIT_S)  # type: ignore[misc]
        with proxied(*place, at=at):
            process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, notes.read_text("utf-8")
        assert run(*words, "--wait", "0.2", env=environment(late)).returncode == 3


def test_a_topic_is_not_made_before_as_many_brokers_are_there_as_it_needs(rig: Rig) -> None:
    """The cluster comes up one broker after the other: a topic that is made at once keeps one replica for good."""
    alone = dataclasses.replace(rig.settings, topic="early", brokers=(*rig.settings.brokers, "127.0.0.1:1"))
    done = run("topic", "create", "--wait", "0.2", env=environment(alone))
    assert done.returncode == 1
    assert "kafka has 1 of 2 brokers: start the others" in done.stderr
