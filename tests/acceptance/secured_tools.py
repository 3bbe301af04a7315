"""What looks at a secured sandbox from outside: its sockets, every process's arguments, its secrets."""

import contextlib
import dataclasses
import socket
import ssl
import struct
import threading
from pathlib import Path
from typing import Self

import psutil
from confluent_kafka import admin as librdkafka
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings, environment, resolve
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.sandbox import secured, state
from tests.acceptance.conftest import environment as exported
from tests.acceptance.conftest import status
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


def known(home: Path) -> state.State:
    found = state.load(home)
    assert found is not None
    return found


def secrets(home: Path) -> list[str]:
    """Passwords of each user, and a line of each key."""
    users = [file.read_text().strip() for file in (home / "tls" / "users").glob("*.kafka-password")]
    assert len(users) == len(secured.ROLES)
    keys = [(home / "tls" / f"{name}.key").read_text().splitlines()[1] for name in ("ca", "kafka", "postgres", "order")]
    return [known(home).password, known(home).kafka_password, *users, *keys]


def leaks(home: Path, text: str) -> list[str]:
    return [secret for secret in secrets(home) if secret in text]


def logs(home: Path) -> str:
    """Read all logs of servers and nodes."""
    files = [file for file in home.rglob("*.log") if file.is_file()]
    assert {"server.log", "console.log", "postgres.log"} <= {file.name for file in files}
    return "".join(file.read_text(errors="replace") for file in files)


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


@dataclasses.dataclass
class Cast:
    """Nodes and commands on a rig's database and topic, each as the user of its role in both servers."""

    rig: Rig
    home: Path
    logs: Path
    stack: contextlib.ExitStack
    _settings: dict[str, Settings] = dataclasses.field(default_factory=dict)

    def settings(self, role: str) -> Settings:
        """Return those of a role's user, as `env --as` exports them."""
        if role not in self._settings:
            self._settings[role] = self._exported(role)
        return self._settings[role]

    def _exported(self, role: str) -> Settings:
        found = exported(self.home, "--as", role)
        url = make_conninfo(found["BREW_DATABASE_URL"], dbname=self.rig.connection.info.dbname)
        mine = {"BREW_TOPIC": self.rig.settings.topic, "BREW_KAFKA_CLIENT": self.rig.settings.kafka_client}
        return resolve({}, {**found, **mine, "BREW_DATABASE_URL": url}, {})

    def start(self, role: str, node: str, *arguments: str) -> Node:
        serving = {name: value for name, value in exported(self.home).items() if name.startswith("BREW_SERVE_")}
        nodes = Nodes(self.settings(role), logs=self.logs, on_line=lambda _line: None, env=serving)
        return self.stack.enter_context(nodes).start(node, *arguments)

    def run(self, role: str, *words: str, code: int = 0) -> str:
        done = run(*words, env=environment(self.settings(role)))
        assert done.returncode == code, (role, words, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    def give(self, *servers: str) -> None:
        """Give each role its rights: "db", "topic"."""
        for server in servers:
            given = self.rig.brewctl(server, "grants", "--apply")
            assert given.returncode == 0, given.stderr


def add_user(home: Path, name: str, password: str) -> None:
    """Add a user of Kafka, as docs/security.md says."""
    security = known(home).settings.kafka_security
    admin = librdkafka.AdminClient(
        {
            "bootstrap.servers": ",".join(known(home).brokers),
            "security.protocol": security.protocol,
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password.read(),
            "ssl.ca.location": security.ca,
        }
    )
    kind = librdkafka.ScramCredentialInfo(librdkafka.ScramMechanism.SCRAM_SHA_512, 4096)  # type: ignore[attr-defined]
    new = librdkafka.UserScramCredentialUpsertion(name, kind, password.encode())  # type: ignore[attr-defined]
    admin.alter_user_scram_credentials([new])[name].result(20)
