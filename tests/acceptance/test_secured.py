"""A secured sandbox of three brokers: the whole story on it, and that nobody gets in without TLS and a password."""

import dataclasses
import json
import socket
import ssl
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
import psycopg
import pytest

from brewctl.config import KafkaClient
from brewctl.sandbox import state
from tests.acceptance import test_story
from tests.acceptance.conftest import brewctl, environment, status
from tests.conftest import Rig, run

# ApiVersions, version 0, which Kafka answers before it knows who asks; its length goes before it.
API_VERSIONS = struct.pack(">hhih4s", 18, 0, 7, 4, b"test")
# Metadata, version 1, of no topic.
METADATA = struct.pack(">hhih4si", 3, 1, 7, 4, b"test", 0)


@dataclasses.dataclass
class Seen:
    """Every argument of every process, as any user sees them."""

    arguments: set[str] = dataclasses.field(default_factory=set)
    _halt: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._halt.wait(0.05):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.arguments.update(process.read_text(errors="replace").split("\0"))
                except OSError:
                    continue


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


def known(home: Path) -> state.State:
    found = state.load(home)
    assert found is not None
    return found


def secrets(home: Path) -> list[str]:
    """Passwords, and a line of each key."""
    keys = [(home / "tls" / f"{name}.key").read_text().splitlines()[1] for name in ("ca", "kafka", "postgres", "order")]
    return [known(home).password, known(home).kafka_password, *keys]


def leaks(home: Path, text: str) -> list[str]:
    return [secret for secret in secrets(home) if secret in text]


def test_the_whole_story_with_a_kill(rig: Rig, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in (("pem", "BREW_SERVE_TLS_CERT_FILE"), ("key", "BREW_SERVE_TLS_KEY_FILE")):
        monkeypatch.setenv(variable, str(home / "tls" / f"order.{name}"))  # as `serve` does on a sandbox itself
    assert rig.settings.order_security.encrypts
    test_story.test_two_hundred_orders_survive_a_kill(rig)


def test_chaos_puts_its_faulty_network_between(home: Path) -> None:
    """Roles go through proxies to each server: names in certificates must hold there, too."""
    load = ("--scenario", "slow-network", "--orders", "100", "--rate", "20", "--seed", "1", "--json")
    done = run("chaos", *load, env={"BREW_HOME": str(home)}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["acknowledged"] >= 80


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


def test_no_secret_is_in_a_log_or_shown(home: Path) -> None:
    assert brewctl(home, "counts").returncode == 0
    shown = [brewctl(home, *command) for command in (["status"], ["status", "--json"], ["up"], ["env"], ["counts"])]
    assert leaks(home, "".join(each.stdout + each.stderr for each in shown)) == []
    logs = [file for file in home.rglob("*.log") if file.is_file()]
    assert {"server.log", "console.log", "postgres.log"} <= {file.name for file in logs}
    assert leaks(home, "".join(file.read_text(errors="replace") for file in logs)) == []


def test_an_order_node_serves_tls_and_has_no_secret_in_its_environment(home: Path) -> None:
    started = brewctl(home, "start", "order")
    assert started.returncode == 0, started.stderr
    try:
        (node,) = known(home).nodes.values()
        process = psutil.Process(node.pid)
        with socket.create_connection(("127.0.0.1", node.port), 20) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
            connection.settimeout(20)
            assert not connection.recv(9).startswith(b"\0")  # no frame of HTTP/2
        with tls(home, node.port):
            pass
        created = brewctl(home, "create-order", "--customer", "c1")
        assert created.returncode == 0, created.stderr
        assert leaks(home, "\n".join([*process.cmdline(), *process.environ().values()])) == []
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


def answer(connection: socket.socket, request: bytes) -> bytes:
    """Send a request of Kafka's, and return what comes back; nothing where the connection ends."""
    connection.settimeout(20)
    try:
        connection.sendall(struct.pack(">i", len(request)) + request)
        return connection.recv(4096)
    except (ssl.SSLError, ConnectionError):
        return b""


def tls(home: Path, port: int, *, certificate: str = "") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(home / "tls" / "ca.pem"))
    if certificate:
        context.load_cert_chain(home / "tls" / f"{certificate}.pem", home / "tls" / f"{certificate}.key")
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="127.0.0.1")


def listening(home: Path, name: str) -> list[int]:
    process = psutil.Process(int(str(status(home)[name]["pid"])))
    sockets = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert all(c.laddr.ip.removeprefix("::ffff:") == "127.0.0.1" for c in sockets)
    return sorted(c.laddr.port for c in sockets)


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
