"""A secured sandbox of three brokers: the whole story on it, and that nobody gets in without TLS and a password."""

import contextlib
import dataclasses
import json
import re
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from brewctl import config
from brewctl.config import KafkaClient
from brewctl.delivery.broker import Producer, Record, UnavailableError, require_topic
from brewctl.errors import BrewError
from brewctl.sandbox import secured
from brewctl.security import Secret
from tests.acceptance import test_story
from tests.acceptance.conftest import brewctl, environment, status
from tests.acceptance.secured_tools import (
    API_VERSIONS,
    METADATA,
    Cast,
    Seen,
    add_user,
    answer,
    known,
    leaks,
    listening,
    logs,
    secrets,
    tls,
)
from tests.conftest import Rig, run
from tests.integration import test_kafka_rights as rights
from tests.integration import test_least_privilege as privilege
from tests.integration.http_tools import page, place, wait_for
from tests.integration.test_wait import await_word


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Seen, str]]:
    """The home of a running one, in a folder with a difficult name; what was seen and said while it was made."""
    home = tmp_path_factory.mktemp("secured") / "a home; of, mine=%41&?#ü"
    with Seen() as seen:
        done = run("up", "--secure", env={"BREW_HOME": str(home)}, timeout=600)
    assert done.returncode == 0, done.stderr
    yield home, seen, done.stdout + done.stderr
    down = run("down", "--purge", env={"BREW_HOME": str(home)})
    assert down.returncode == 0, down.stderr
    assert {entry.name for entry in home.iterdir()} <= {"lock"}


@pytest.fixture(scope="module")
def home(up: tuple[Path, Seen, str]) -> Path:
    return up[0]


@pytest.fixture(scope="module")
def servers(home: Path) -> dict[str, str]:
    return environment(home)


@pytest.fixture(params=list(KafkaClient))
def kafka_client(request: pytest.FixtureRequest) -> KafkaClient:
    return KafkaClient(request.param)


def test_the_whole_story_with_a_kill(rig: Rig) -> None:
    assert rig.settings.order_security.encrypts
    test_story.test_two_hundred_orders_survive_a_kill(rig)


def test_chaos_puts_its_faulty_network_between(home: Path, tmp_path: Path) -> None:
    """Roles go through proxies to each server: names in certificates must hold there, too."""
    load = ("--scenario", "slow-network", "--orders", "100", "--rate", "20", "--seed", "1", "--json")
    report = tmp_path / "chaos.html"
    with Seen() as seen:
        done = run("chaos", *load, "--report", str(report), env={"BREW_HOME": str(home)}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["acknowledged"] >= 80
    assert "consume" in seen.arguments
    assert leaks(home, "\n".join([*seen.arguments, done.stdout, done.stderr, report.read_text()])) == []
    assert leaks(home, logs(home)) == []


def test_the_demo_shows_no_secret(home: Path, tmp_path: Path) -> None:
    files = [tmp_path / "demo.html", tmp_path / "demo.svg"]
    shown = ("--report", str(files[0]), "--picture", str(files[1]))
    with Seen() as seen:
        done = run("demo", "--orders", "20", "--speed", "fast", *shown, env={"BREW_HOME": str(home)}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        leaks(home, "\n".join([*seen.arguments, done.stdout, done.stderr, *(each.read_text() for each in files)])) == []
    )
    assert leaks(home, logs(home)) == []


def test_no_secret_is_in_an_argument_while_it_is_made(up: tuple[Path, Seen, str]) -> None:
    home, seen, said = up
    arguments = "\n".join(seen.arguments)
    # It did look: these ran meanwhile.
    assert "kafka.tools.StorageTool" in seen.arguments
    assert "--pwfile=password" in seen.arguments
    assert "server.properties" in seen.arguments
    assert leaks(home, arguments) == []
    assert leaks(home, said) == []
    assert "secured   TLS and a password for every connection" in said


def test_no_secret_is_in_an_argument_an_environment_or_a_log_or_shown(home: Path, tmp_path: Path) -> None:
    picture, refused = tmp_path / "top.svg", {"BREW_HOME": str(home), "BREW_KAFKA_USERNAME": "brew_nobody"}
    with Seen() as seen:
        started = brewctl(home, "-v", "start", "order", "publisher", "inventory", "notifications")
        assert started.returncode == 0, started.stderr
        try:
            commands = (
                *(("create-order", "--customer", "c1"), ("counts",), ("up",), ("status",), ("status", "--json")),
                *(
                    ("env",),
                    ("env", "--as", "reader"),
                    ("env", "--json"),
                    ("logs",),
                    ("doctor",),
                    ("metrics", "--once"),
                ),
                ("top", "--picture", str(picture), "--after", "1"),
            )
            done = [brewctl(home, *command) for command in commands]
            assert [each.returncode for each in done] == [0] * len(done), done
            done += [started, run("-v", "groups", env=refused)]
            processes = [
                psutil.Process(each.pid) for each in (*known(home).nodes.values(), *known(home).servers.values())
            ]
            environments = [value for process in processes for value in process.environ().values()]
        finally:
            assert brewctl(home, "stop", "--all").returncode == 0
    said = [each.stdout + each.stderr for each in done]
    assert "Traceback" in said[-1]
    assert "inventory" in seen.arguments
    assert leaks(home, "\n".join([*said, *seen.arguments, *environments, picture.read_text()])) == []
    assert leaks(home, logs(home)) == []


def test_an_order_node_serves_tls(home: Path) -> None:
    started = brewctl(home, "start", "order")
    assert started.returncode == 0, started.stderr
    try:
        (node,) = known(home).nodes.values()
        with socket.create_connection(("127.0.0.1", node.port), 20) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
            connection.settimeout(20)
            assert not connection.recv(9).startswith(b"\0")  # no frame of HTTP/2
        with tls(home, node.port):
            pass
        created = brewctl(home, "create-order", "--customer", "c1")
        assert created.returncode == 0, created.stderr
    finally:
        assert brewctl(home, "stop", "--all").returncode == 0


def test_status_says_that_it_is_secured(home: Path) -> None:
    assert "secured: TLS and a password for every connection of the servers" in brewctl(home, "status").stdout
    assert all(row["secured"] for row in status(home).values())


def test_its_files_are_their_owners_alone(home: Path) -> None:
    held = secrets(home)
    for file in home.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size < 10**6:
            content = file.read_bytes()
            if any(secret.encode() in content for secret in held):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "tls").stat().st_mode) == 0o700


@pytest.fixture
def cast(home: Path, rig: Rig, tmp_path: Path) -> Iterator[Cast]:
    with contextlib.ExitStack() as stack:
        yield Cast(rig, home, tmp_path / "cast", stack)


@pytest.mark.parametrize("kafka_client", [KafkaClient.KAFKA_PYTHON_NG])
def test_the_story_with_a_user_for_each_role_whose_rights_come_after_its_start(cast: Cast) -> None:
    rig, wait = cast.rig, ("--wait", "600")
    inventory = cast.start("inventory", "inventory-1", "consume", "inventory", *wait, "--http", "127.0.0.1:0")
    notifications = cast.start("notifications", "notification-1", "consume", "notifications", *wait)
    order = cast.start("order", "order-1", "serve", "order", "--port", "0", "--no-publisher", *wait)
    publisher = cast.start("publisher", "publisher-1", "publish", *wait)
    pages = place(inventory)
    await_word(inventory, f"kafka user brew_inventory may not DESCRIBE topic {rig.settings.topic}")
    cast.give("topic")
    await_word(inventory, "postgres user brew_inventory may not SELECT")
    assert [page(pages, path).status for path in ("/livez", "/readyz")] == [200, 503]
    assert page(pages, "/readyz").text.startswith(
        "not ready\nNO starting; it waits: postgres user brew_inventory may not "
    )
    cast.give("db")
    for node in (inventory, notifications, order, publisher):
        node.wait_ready(timeout_s=60)
    wait_for(pages, "/readyz", 200)

    made = cast.run("reader", "create-order", "--customer", "c1", "--count", "5", "--addr", order.address).split()
    cast.run("reader", "cancel-order", made[0], "--addr", order.address)
    rig.wait("effects", lambda: rig.counts().notifications == rig.counts().reservations == 5)
    producer = Producer(rig.settings, node="another-team")
    producer.send([Record(rig.settings.topic, b"k", b"no order", [])], timeout_s=20)
    producer.close()
    rig.wait("dead letters", lambda: len(cast.run("reader", "dlq", "list", "--json").splitlines()) == 2)
    assert "user brew_reader lacks a right" in cast.run("reader", "dlq", "redrive", "--all", code=1)
    assert cast.run("operator", "dlq", "redrive", "--all").startswith("redriven=2 ")
    rig.wait("dead letters", lambda: len(cast.run("reader", "dlq", "list", "--json").splitlines()) == 2)
    cast.run("operator", "dlq", "drop", "--all", "--yes")
    asked = config.environment(cast.settings("reader"))
    rig.wait("the verdict", lambda: run("verify", "--late", "0", env=asked).returncode == 0)
    cast.run("reader", "metrics", "--once")
    for node in (inventory, notifications, order, publisher):
        assert not re.search("no right|forbids|denied", node.log.read_text()), node.name


@pytest.mark.parametrize("kafka_client", [KafkaClient.LIBRDKAFKA])
def test_what_a_role_must_not_do_is_refused_by_both_servers(cast: Cast) -> None:
    cast.give("topic", "db")
    rights._produce(cast.rig.settings)
    rights._bury(cast.rig.settings, "inventory")
    add_user(cast.home, "brew_nobody", "of-nobody")
    nobody = dataclasses.replace(
        cast.rig.settings,
        kafka_security=dataclasses.replace(
            cast.rig.settings.kafka_security, username="brew_nobody", password=Secret("", "of-nobody")
        ),
    )
    topic, letters = cast.rig.settings.topic, cast.rig.settings.dead_letter_topic
    allowed = []
    for settings, attempt in (
        (cast.settings("order"), lambda settings: rights._read(settings, topic)),
        (cast.settings("order"), lambda settings: rights._read(settings, letters)),
        (cast.settings("inventory"), rights._produce),
        (cast.settings("inventory"), lambda settings: rights._consume(settings, "notifications")),
        (cast.settings("reader"), rights._produce),
        (cast.settings("owner"), rights._produce),
        (nobody, require_topic),
        (nobody, lambda settings: rights._read(settings, topic)),
    ):
        try:
            attempt(settings)
        except (BrewError, UnavailableError) as error:
            if not re.search(r"may not|no right", str(error)):
                allowed.append(str(error))
        else:
            allowed.append(f"{settings.kafka_security.username} did it")
    for role in secured.ROLES:
        for statement in privilege.MUST_NOT.get(role, ())[:3]:
            with psycopg.connect(cast.settings(role).database_url) as connection:
                try:
                    connection.execute(statement.encode())
                except psycopg.errors.InsufficientPrivilege:
                    continue
                allowed.append(f"{role} did {statement}")
    assert allowed == []


def test_no_port_of_a_broker_answers_without_tls(home: Path) -> None:
    for number in (1, 2, 3):
        ports = listening(home, f"kafka-{number}")
        there = known(home)
        expected = (*there.ports[f"kafka-{number}"], there.kafka_detours[number - 1][0])
        assert ports == sorted(expected)
        for port in ports:
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                said = answer(connection, API_VERSIONS)
            # At most an alert of TLS, which ends it: nothing that answers request 7.
            assert not said or said[0] == 0x15, (port, said)


def test_a_broker_answers_nothing_to_one_who_has_not_said_who_it_is(home: Path) -> None:
    for port in (known(home).kafka_ports[0][0], known(home).kafka_detours[0][0]):
        with tls(home, port) as connection:
            assert struct.pack(">i", 7) in answer(connection, API_VERSIONS)  # this is allowed to all
        with tls(home, port) as connection:
            assert answer(connection, METADATA) == b""


def test_where_brokers_talk_to_each_other_only_their_own_certificate_is_accepted(home: Path) -> None:
    there = known(home)
    for port in (there.kafka_ports[0][1], there.kafka_internal[0]):
        for certificate in ("", "order", "postgres"):
            with tls(home, port, certificate=certificate) as connection:
                assert answer(connection, API_VERSIONS) == b"", (port, certificate)
        with tls(home, port, certificate="kafka") as connection:
            assert struct.pack(">i", 7) in answer(connection, API_VERSIONS)


def test_postgres_takes_nobody_without_tls_or_with_a_wrong_password(home: Path) -> None:
    url, password = environment(home)["BREW_DATABASE_URL"], known(home).password
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert found == (True, "TLSv1.3")
    port = known(home).postgres_port
    assert listening(home, "postgres") == [port]
    for database in ("brew", "postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(f"postgresql://brew:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(psycopg.conninfo.make_conninfo(url, password="guessed"))


WRONG = {
    "kafka's password": {"BREW_KAFKA_PASSWORD": "guessed", "BREW_KAFKA_PASSWORD_FILE": ""},
    "kafka without tls": {"BREW_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"},
    "kafka without a user": {"BREW_KAFKA_SECURITY_PROTOCOL": "SSL"},
    "the system's authorities": {"BREW_KAFKA_CA_FILE": ""},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_client_that_is_not_let_in_is_told_in_one_line(home: Path, wrong: str, kafka_client: KafkaClient) -> None:
    env = {"BREW_HOME": str(home), **environment(home), **WRONG[wrong], "BREW_KAFKA_CLIENT": kafka_client}
    refused = run("groups", env=env)
    assert refused.returncode in {1, 2, 3}, refused.stdout
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "guessed" not in refused.stderr
    assert leaks(home, refused.stderr) == []


@pytest.mark.parametrize("name", ["ca.pem", "kafka-password", "pgpass"])
def test_a_file_that_a_command_lacks_is_one_line_and_up_brings_it_back_or_says_how(home: Path, name: str) -> None:
    file = home / "tls" / name
    content = file.read_bytes()
    file.unlink()
    try:
        lacking = brewctl(home, "groups" if name == "kafka-password" else "counts")
        assert lacking.returncode != 0
        assert lacking.stderr.count("\n") == 1, lacking.stderr
        up = brewctl(home, "up")
        if name == "ca.pem":
            assert up.returncode == 1
            mend = "run `brewctl down`, then `brewctl up`, which makes it anew"
            assert up.stderr == f"brewctl: {file} is missing: {mend}\n"
        else:
            assert up.returncode == 0, up.stderr
            assert file.read_bytes() == content
    finally:
        file.write_bytes(content)
        file.chmod(0o600)


def test_it_stays_secured_and_lost_certificates_are_made_anew_with_the_data_kept(home: Path) -> None:
    """Last: its servers are other processes afterwards."""
    with psycopg.connect(environment(home)["BREW_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    topics = brewctl(home, "topic", "create")
    assert topics.returncode == 0, topics.stderr
    assert brewctl(home, "down").returncode == 0
    for name in ("ca.key", "kafka.key", "postgres.pem"):
        (home / "tls" / name).write_bytes(b"")
    other = brewctl(home, "up", "--no-secure")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "this sandbox was made with --secure: run `brewctl down --purge` first" in other.stderr
    again = brewctl(home, "up")
    assert again.returncode == 0, again.stderr
    assert "certificates" in again.stderr
    assert all(row["answers"] and row["secured"] for row in status(home).values())
    with psycopg.connect(environment(home)["BREW_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    assert brewctl(home, "groups").returncode == 0
