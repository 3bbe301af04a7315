"""Real servers for the tests, and a rig of one's own for each.

BREW_DATABASE_URL and BREW_KAFKA_BROKERS name the servers; else each of three test processes brings a sandbox up, in a
temporary home. BREW_KAFKA_CLIENT chooses the client of tests that do not run over both. Every test gets a database and
a topic of its own. The groups have the contract's names: on servers of
yours, stop the roles first; their offsets may be reset, which costs a redelivery and no effect.
"""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from brewctl import config, lifecycle, overview, security
from brewctl.config import KafkaClient, Settings, environment, own_database_variable
from brewctl.delivery import database
from brewctl.delivery.broker import open_admin
from brewctl.delivery.schema import setup
from brewctl.delivery.schema.homes import Databases
from brewctl.delivery.topics import topics
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.roles import listening
from brewctl.security import KafkaSecurity, Secret
from tests import scheduling, template
from tests.warm import Warm

# Where nothing is to be written, each start of brewctl compiles it anew: a fourth of the CPU that a node's start takes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

BREWCTL = str(Path(sys.executable).with_name("brewctl"))
_SERVERS = ("BREW_DATABASE_URL", "BREW_KAFKA_BROKERS")
_GIVEN = {name: os.environ[name] for name in _SERVERS if os.environ.get(name)}
_SECURED = (security.DATABASE | security.KAFKA | security.ORDER).values()
_GIVEN_SECURITY = {name: os.environ[name] for name in (*_SECURED, *listening.VARIABLES) if os.environ.get(name)}
_CLIENT = KafkaClient(os.environ.get("BREW_KAFKA_CLIENT") or Settings.kafka_client)


_ROOM_BYTES = 4 * 1024**3  # for a sandbox of each process, of several hundred MB
warmed: list[Warm] = []  # in which unit tests run `brewctl`


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> scheduling.ByFile | None:
    return scheduling.ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three, each with servers of its own: most tests wait. One process on servers of yours, which share the groups.

    Unit tests don't wait: two, as each imports all of them.
    """
    if all(Path(each).is_relative_to("tests/unit") for each in config.args):
        return 2
    return 0 if len(_GIVEN) == len(_SERVERS) else 3


def run(*arguments: str, env: dict[str, str] | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the installed binary to its end, or what unit tests have in its place; `env` is added to ours."""
    environment = {**os.environ, **(env or {})}
    if warmed and warmed[-1].serves(environment):
        return warmed[-1].run(arguments, environment, timeout)
    return subprocess.run(
        [BREWCTL, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def begin(*arguments: str, env: dict[str, str], stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start the installed binary; who has it can do something to it."""
    return subprocess.Popen(
        [BREWCTL, *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def limited(settings: Settings, **limits: Any) -> Settings:
    """Settings with other limits."""
    return dataclasses.replace(settings, limits=dataclasses.replace(settings.limits, **limits))


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Tests say themselves what they configure."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*config.ENVIRONMENT.values(), *_SECURED, *listening.VARIABLES, "BREW_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "80")
        patch.setenv("NO_COLOR", "1")
        for name in ("no_proxy", "NO_PROXY"):  # of the tests' own channels; downloads may need the proxy
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that name real servers; skips where there are none, unless BREW_REQUIRE_INTEGRATION=1.

    One broker, which costs less: what needs three is among the acceptance tests.
    """
    with in_memory(tmp_path_factory) as home, real_servers(home, brokers=1) as found:
        yield found


@contextlib.contextmanager
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for a sandbox in memory, where there is room: each test makes a database, and drops it, with fsyncs."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < _ROOM_BYTES:
        yield tmp_path_factory.mktemp("sandbox")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="brewctl-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def real_servers(home: Path, *, brokers: int) -> Iterator[dict[str, str]]:
    """Servers of yours, or a sandbox that is there while the block runs."""
    if len(_GIVEN) == len(_SERVERS):
        try:
            psycopg.connect(_GIVEN["BREW_DATABASE_URL"], connect_timeout=5).close()
        except psycopg.OperationalError as error:
            pytest.exit(f"BREW_DATABASE_URL is set: {str(error).splitlines()[0]}; unset it, or start the server", 1)
        try:
            yield _GIVEN | _GIVEN_SECURITY
        finally:
            template.drop(_GIVEN["BREW_DATABASE_URL"])
        return
    env = {"BREW_HOME": str(home)}
    up = run("up", "--brokers", str(brokers), env=env, timeout=600)
    try:
        if up.returncode:
            _unavailable(f"no servers: set {' and '.join(_SERVERS)}; the sandbox says: {up.stderr.strip()}")
        lines = run("env", env=env).stdout.splitlines()
        yield {match[1]: match[2].strip("'") for line in lines if (match := re.fullmatch(r"export (\w+)=(.*)", line))}
    finally:
        run("down", "--purge", env=env)


def _unavailable(reason: str) -> None:
    if os.environ.get("BREW_REQUIRE_INTEGRATION") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Rig:
    """A database and topics of one test's own, and the roles that run on them."""

    settings: Settings
    nodes: Nodes
    connection: database.BoundedConnection
    env: dict[str, str] = field(default_factory=dict)

    def move(self, group: str, url: str) -> None:
        """Let a downstream have its state in this database, for the settings and for processes."""
        variable = own_database_variable(group)
        self.env[variable] = url
        self.settings = replace(self.settings, own_databases=(Secret(variable, url),))

    @functools.cached_property
    def databases(self) -> Databases:
        """All databases of this rig: its own one, and those that the settings say downstreams have."""
        return Databases(self.settings, self.connection)

    def start(self, name: str, *arguments: str) -> Node:
        """Start a node and wait until it is ready: a server listens, a consumer has joined its group."""
        node = self.nodes.start(name, *arguments)
        node.wait_ready(timeout_s=120)
        return node

    def serve(self, name: str = "order-1") -> tuple[Node, str]:
        """Start an order node on a free port and return it with its address."""
        node = self.start(name, "serve", "order", "--port", "0")
        return node, node.address

    def brewctl(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command on this rig's servers."""
        return run(*arguments, env=self.env, timeout=timeout)

    @contextlib.contextmanager
    def own_database(self) -> Iterator[str]:
        """Make an empty database beside this rig's, and yield its URL."""
        name = f"brew_test_own_{uuid.uuid4().hex[:12]}"
        self.connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield psycopg.conninfo.make_conninfo(self.settings.database_url, dbname=name)
        finally:
            self.connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

    def counts(self) -> overview.Counts:
        """Read the four counters."""
        counts, away = overview.with_homes(self.databases)
        if away:
            raise away
        return counts

    @contextlib.contextmanager
    def no_reservations(self) -> Iterator[None]:
        """Reservations wait for the end of the block; they can be counted meanwhile."""
        with psycopg.connect(self.settings.database_url) as gate:
            gate.execute("LOCK TABLE inventory_reservations IN SHARE MODE")
            yield
            gate.rollback()

    def wait(self, what: str, condition: Callable[[], bool], *, timeout_s: float = 120) -> None:
        """Wait for a condition; the error has the counters, and how far each partition has come."""
        try:
            lifecycle.wait_until(what, condition, timeout_s=timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}; {self.counts()}\n{self.progress()}") from None

    def progress(self) -> str:
        """Write how far each partition's events have come, and the groups. Without a partition: never published."""
        if self.databases.apart:
            return self.brewctl("groups").stdout
        rows = self.connection.execute(
            "SELECT kafka_partition, count(*), count(published_at), count(r.order_id), count(n.order_id) FROM outbox"
            " LEFT JOIN inventory_reservations r ON aggregate_id = 'order-' || r.order_id"
            " LEFT JOIN notifications_log n ON aggregate_id = 'order-' || n.order_id GROUP BY 1 ORDER BY 1"
        )
        parts = [
            f"partition {partition}: events={events} published={published} reserved={reserved} notified={notified}"
            for partition, events, published, reserved, notified in rows
        ]
        groups = self.brewctl("groups")
        return "\n".join([*parts, groups.stdout, groups.stderr])


@contextlib.contextmanager
def open_rig(
    servers: dict[str, str],
    logs: Path,
    *,
    database_options: str = "",
    kafka_client: KafkaClient = _CLIENT,
    kafka_security: KafkaSecurity | None = None,
) -> Iterator[Rig]:
    """A fresh database and topic, no members in the groups; whatever was started is ended.

    Kafka is talked to as the variables of `servers` say, unless `kafka_security` says otherwise.
    """
    told = {
        name: servers.get(variable, "")
        for variables in (security.KAFKA, security.ORDER)
        for name, variable in variables.items()
    }
    name = f"brew_test_{uuid.uuid4().hex[:12]}"
    server_url = servers["BREW_DATABASE_URL"]
    serving = {name: servers[name] for name in listening.VARIABLES if name in servers}
    settings = Settings(
        database_url=psycopg.conninfo.make_conninfo(server_url, dbname=name),
        brokers=tuple(servers["BREW_KAFKA_BROKERS"].split(",")),
        topic=f"{name}-order-created",
        kafka_client=kafka_client,
        kafka_security=kafka_security or security.kafka(told),
        order_security=security.order(told),
    )
    with psycopg.connect(server_url, autocommit=True) as maintenance:
        try:
            of = database_options or f'TEMPLATE "{template.name(settings, server_url, maintenance)}"'
            maintenance.execute(f'CREATE DATABASE "{name}" {of}'.encode())
        except psycopg.errors.InsufficientPrivilege:
            _unavailable("the database user may not create databases")
        try:
            topics.await_empty_groups(settings, timeout_s=60)
            topics.create(settings)
            with (
                database.connect(settings) as connection,
                Nodes(settings, logs=logs, on_line=lambda _line: None, env=serving) as nodes,
            ):
                if database_options:
                    setup.initialize(connection)
                yield Rig(settings, nodes, connection, environment(settings))
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            with open_admin(settings) as admin:
                for topic in (settings.topic, settings.dead_letter_topic):
                    admin.delete_topic(topic)


@pytest.fixture
def kafka_client() -> KafkaClient:
    """Which client sends and reads: BREW_KAFKA_CLIENT, where tests do not name both."""
    return _CLIENT


@pytest.fixture
def rig(servers: dict[str, str], tmp_path: Path, kafka_client: KafkaClient) -> Iterator[Rig]:
    """A rig of one test's own."""
    with open_rig(servers, tmp_path / "logs", kafka_client=kafka_client) as rig:
        yield rig
