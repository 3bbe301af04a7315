"""Settings: where the servers are, and every bound by name and unit.

Each server setting is taken from the flag, else the environment, else the running sandbox, else the default.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from brewctl import security
from brewctl.errors import UsageError

TOPIC = "usecase-09-01-order-created"
_PORTS = range(1, 65536)
_PORT = re.compile(r"[0-9]{1,5}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
# Kafka's limit is 249; 4 characters are left for the dead-letter topic's ".dlq".
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,245}")
# What docker-compose.yml starts.
DEFAULT_DATABASE_URL = "postgresql://brew:brew@127.0.0.1:5432/brew"
DEFAULT_BROKERS = ("127.0.0.1:9092", "127.0.0.1:9093", "127.0.0.1:9094")
DEFAULT_ORDER_ADDRS = ("127.0.0.1:50081",)
# The story's own.
DEFAULT_DOWNSTREAMS = ("brewctl.roles.inventory:DOWNSTREAM", "brewctl.roles.notifications:DOWNSTREAM")
SHORT_NAMES = dict(zip(("inventory", "notifications"), DEFAULT_DOWNSTREAMS, strict=True))
DOWNSTREAM_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
# As a group's own name; both together fit Kafka's names.
_GROUP_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,100}")


class LogFormat(StrEnum):
    """How log lines are written."""

    LOGFMT = "logfmt"
    JSON = "json"


class KafkaClient(StrEnum):
    """The library that sends and reads."""

    KAFKA_PYTHON_NG = "kafka-python-ng"
    LIBRDKAFKA = "librdkafka"


@dataclass(frozen=True)
class Limits:
    """Every bound of the running roles, and every wait for a server. Units are in the names."""

    # gRPC: more calls than this in flight are answered RESOURCE_EXHAUSTED, with the time to wait before a retry.
    concurrent_calls: int = 256
    retry_after_s: float = 0.5
    # Threads that read orders, and those that try one alone which its batch did not write: each has a database
    # connection of its own at most.
    reading_threads: int = 8
    alone_threads: int = 8
    # Threads that cancel orders, half of them those whose order another transaction holds.
    cancelling_threads: int = 4
    # Creates whose idempotency key is known to be held by another transaction; half of alone_threads try them.
    held_orders: int = 64
    # Calls of every kind, also those on their way out: more are refused by the transport, without a word. Of
    # those, the ones that wait for their client, to send its message or to read its answer, and health's watchers.
    transport_calls: int = 4096
    waiting_calls: int = 512
    health_watchers: int = 1024
    # How long a connected client may be silent before it is asked for a sign of life, and then to give it.
    client_silence_s: float = 10.0
    # Where several processes share the port: a client keeps its connection for ever, and its calls with it in the
    # process that took it, so that one started later would get none. So a connection that is so old, on average, takes
    # no more calls, and its client makes another: once in this time a call waits for that, a few round trips.
    connection_age_s: float = 60.0
    # One request; what fits here fits Kafka's default record limit with room for the headers.
    request_bytes: int = 64 * 1024
    # One Create, Cancel or Get inside the database; a Create less where its caller's deadline is nearer.
    create_s: float = 5.0
    # Orders that are committed together: the wait for their connection, their statement, and its wait for a lock.
    # Longer than that, each of them waits alone.
    create_connection_s: float = 0.5
    create_batch_s: float = 1.0
    create_lock_s: float = 0.1
    # How long a call waits for a database connection before UNAVAILABLE.
    database_wait_s: float = 2.0
    # One connection attempt, then one statement, as the server counts; then as the client does, which also
    # notices a server that says nothing any more. Each longer than the one before.
    database_connect_s: int = 5
    database_statement_s: int = 30
    database_answer_s: float = 35.0
    # A change of the schema: how long it waits for a table's lock at a time, so long do others wait behind it; how
    # long it goes on asking; how long one statement, an index's build, may take.
    schema_lock_s: float = 0.2
    schema_wait_s: float = 60.0
    schema_s: int = 600
    # How often an order-service looks whether the database is there, and how long it waits for the answer.
    database_look_s: float = 1.0
    # A session that holds row locks and does nothing is ended by PostgreSQL, so a paused
    # publisher can't keep its rows from the others. Must be longer than publish_s.
    database_idle_transaction_s: int = 15
    # Outbox rows a transaction, at first and at most, and their payloads (one row always fits): with their
    # headers they fit into one batch of Kafka's. How long it may wait for acknowledgements.
    publish_rows_first: int = 100
    publish_rows: int = 1000
    publish_bytes: int = 512 * 1024
    publish_s: float = 5.0
    # How soon a publisher that is not told of commits looks again after rows.
    publish_again_s: float = 0.1
    # So long does a node that publishes for all lead without renewing it; one that is killed is waited for so long.
    publish_lead_s: float = 0.5
    # Between two looks at an idle outbox, on average; commits of this process wake it at once.
    publish_poll_s: float = 0.5
    # Consumer: records a transaction, at first and at most, and bytes that one partition may bring into memory at a
    # time. A consumer whose effect is slow does not begin with a transaction that runs into its timeout.
    consume_records_first: int = 100
    consume_records: int = 2000
    consume_partition_bytes: int = 1024 * 1024
    # One that has read everything rests after a batch by what that cost, so long at most.
    consume_rest_s: float = 0.05
    # Offsets of what is done are committed so seldom, and before more records than these would come again.
    offset_commit_s: float = 1.0
    redelivery_records: int = 20_000
    # So many events whose effect fails, with no success between, are no event's fault: the downstream stops.
    failures_in_a_row: int = 10
    # A member that is silent for a session loses its partitions, and so does one that has not polled for so long.
    session_s: float = 15.0
    heartbeat_s: float = 1.0
    poll_interval_s: float = 300.0
    # Kafka: the first answer of any broker, metadata of a topic, a request of a role, one of a command.
    kafka_connect_s: float = 5.0
    kafka_metadata_s: float = 2.0
    kafka_request_s: float = 30.0
    kafka_admin_s: float = 15.0
    # How old a role's knowledge of its topics may be: partitions that were added are found within it.
    kafka_metadata_age_s: float = 30.0
    # After a stop: how long a consumer waits for Kafka to take its last commit and its leave.
    kafka_leave_s: float = 3.0
    # How long a command goes on asking a cluster that answers "not yet".
    kafka_patience_s: float = 30.0
    # How often an order-service looks whether its certificate or its tokens have changed.
    files_look_s: float = 0.5
    # After the first signal: how long an order-service listens on, to refuse with a reason; how long work in hand
    # may take.
    linger_s: float = 0.1
    drain_s: float = 10.0
    # Processes that share a port open it together: how long they wait for another one to get ready.
    worker_ready_s: float = 60.0

    @property
    def order_connections(self) -> int:
        """Of one order-service to the database, at most: its threads', writer's, publisher's, watch's, presence's."""
        return self.reading_threads + self.alone_threads + self.cancelling_threads + 4

    @property
    def longest_turn_s(self) -> float:
        """No turn of a loop that asks PostgreSQL or Kafka takes longer: the sum of all waits that one may have."""
        database_s = self.database_wait_s + self.database_connect_s + 3 * self.database_answer_s
        kafka_s = self.kafka_connect_s + self.kafka_metadata_s + self.kafka_request_s + 2 * self.publish_s
        return database_s + kafka_s

    def __post_init__(self) -> None:
        if self.session_s < 3 * self.heartbeat_s:
            raise UsageError(
                f"session timeout {self.session_s:g} s must be at least 3 heartbeats of {self.heartbeat_s:g} s"
            )
        if self.database_idle_transaction_s <= self.publish_s:
            raise UsageError("database_idle_transaction_s must be longer than publish_s")
        if not self.database_connect_s < self.database_statement_s < self.database_answer_s:
            raise UsageError("database_connect_s, database_statement_s, database_answer_s must grow in this order")
        # One try; a consumer polls between two of them, and keeps its partitions.
        if self.poll_interval_s <= self.database_wait_s + self.database_answer_s + 2 * self.publish_s:
            raise UsageError("poll_interval_s must be longer than one try of a batch: database and dead letters")


@dataclass(frozen=True)
class Settings:
    """Where everything is. `configured` names the server settings that a flag or the environment gave."""

    database_url: str = field(default=DEFAULT_DATABASE_URL, repr=False)  # may hold a password
    brokers: tuple[str, ...] = DEFAULT_BROKERS
    topic: str = TOPIC
    order_addrs: tuple[str, ...] = DEFAULT_ORDER_ADDRS
    # What reads the topic, as MODULE:NAME; and what stands before each consumer group's name in Kafka.
    downstreams: tuple[str, ...] = DEFAULT_DOWNSTREAMS
    group_prefix: str = ""
    kafka_client: KafkaClient = KafkaClient.KAFKA_PYTHON_NG
    database_security: security.DatabaseSecurity = field(default_factory=security.DatabaseSecurity)
    kafka_security: security.KafkaSecurity = field(default_factory=security.KafkaSecurity)
    order_security: security.OrderSecurity = field(default_factory=security.OrderSecurity)
    configured: frozenset[str] = frozenset()
    # What makes the tables of this database, and the variable that names it: said where one of them is missing, or it.
    init_command: str = "brewctl db init"
    database_variable: str = "BREW_DATABASE_URL"
    limits: Limits = field(default_factory=Limits)

    @property
    def dead_letter_topic(self) -> str:
        """The topic of records that no consumer can read."""
        return f"{self.topic}.dlq"

    @property
    def impatient(self) -> "Settings":
        """Settings for who asks again and again: an answer that takes long is of no use to them."""
        limits = replace(
            self.limits, database_connect_s=2, kafka_connect_s=2.0, kafka_admin_s=3.0, kafka_patience_s=1.0
        )
        return replace(self, limits=limits)


def own_database_variable(group: str) -> str:
    """Name the variable with the database of a downstream's own, where it has one; with `_FILE`, the URL's file."""
    return f"BREW_{re.sub('[^A-Z0-9]', '_', group.upper())}_DATABASE_URL"


# Where a role shows what it counts, and how it is. One process's: those that it starts get another, or none.
HTTP_VARIABLE = "BREW_HTTP"
ENVIRONMENT = {
    "database_url": "BREW_DATABASE_URL",
    "brokers": "BREW_KAFKA_BROKERS",
    "topic": "BREW_TOPIC",
    "order_addrs": "BREW_ORDER_ADDRS",
    "downstreams": "BREW_DOWNSTREAMS",
    "group_prefix": "BREW_GROUP_PREFIX",
    "kafka_client": "BREW_KAFKA_CLIENT",
}


def resolve(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    sandbox: Mapping[str, str],
    limits: Limits | None = None,
) -> Settings:
    """Merge the sources, first found wins: `flags`, `environ`, the running `sandbox`, the defaults.

    An empty value counts as not given. Raises UsageError for a value that can't be used.
    """
    given = {name: (flags.get(name) or environ.get(variable, "")).strip(" ,") for name, variable in ENVIRONMENT.items()}
    named = {name: environ.get(variable, "").strip() for name, variable in security.DATABASE.items()}
    if flags.get("database_url"):
        named |= {"database_url": "", "database_url_file": ""}
    database = security.database(named)
    if database.url.file:
        given["database_url"] = database.url.read()
    chosen = {name: value or sandbox.get(name, "") for name, value in given.items()}
    defaults = Settings()
    return Settings(
        database_url=chosen["database_url"] or defaults.database_url,
        brokers=_addresses("brokers", chosen["brokers"]) or defaults.brokers,
        topic=_topic(chosen["topic"]) or defaults.topic,
        order_addrs=_addresses("order_addrs", chosen["order_addrs"]) or defaults.order_addrs,
        downstreams=_downstreams(chosen["downstreams"]) or defaults.downstreams,
        group_prefix=_group_prefix(chosen["group_prefix"]),
        kafka_client=_kafka_client(chosen["kafka_client"]),
        database_security=database,
        kafka_security=security.kafka(_of_server("brokers", security.KAFKA, given, environ, sandbox)),
        order_security=security.order(_of_server("order_addrs", security.ORDER, given, environ, sandbox)),
        configured=frozenset(name for name, value in given.items() if value),
        limits=limits or Limits(),
    )


def environment(settings: Settings) -> dict[str, str]:
    """The variables that point a `brewctl` process at these servers. Secrets travel here, not in arguments."""
    database = settings.database_security
    values = {
        # What is in a file stays there.
        "database_url": "" if database.url.file else settings.database_url,
        "brokers": ",".join(settings.brokers),
        "topic": settings.topic,
        "order_addrs": ",".join(settings.order_addrs),
        "downstreams": ",".join(settings.downstreams),
        "group_prefix": settings.group_prefix,
        "kafka_client": settings.kafka_client.value,
    }
    secrets = {
        "database_url_file": database.url.file,
        "database_password": database.password.text,
        "database_password_file": database.password.file,
    }
    secured = security.environment(settings.kafka_security, settings.order_security)
    variables = ENVIRONMENT | security.DATABASE
    return {variables[name]: value for name, value in (values | secrets).items()} | secured


def _of_server(
    address: str,
    variables: Mapping[str, str],
    given: Mapping[str, str],
    environ: Mapping[str, str],
    sandbox: Mapping[str, str],
) -> dict[str, str]:
    """Return how a server's connections are secured: by the environment, else as the sandbox's own are.

    The sandbox's hold for its own server alone: not where a flag or the environment gave another one's address, and not
    beside what the environment says of it.
    """
    named = {name: environ.get(variable, "").strip() for name, variable in variables.items()}
    if given[address] or any(named.values()):
        return named
    return {name: sandbox.get(name, "") for name in variables}


def short_name(downstream: str) -> str:
    """Return what a user calls a downstream: the short name of the story's own, else MODULE:NAME itself."""
    return next((short for short, name in SHORT_NAMES.items() if name == downstream), downstream)


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the sandbox keeps its state and data: BREW_HOME, else the user's state directory. Raises UsageError."""
    return _folder("BREW_HOME", environ) or _users_own(platformdirs.user_state_path, "BREW_HOME")


def cache() -> Path:
    """Where downloads are kept, of which all sandboxes of a user are made: in XDG_CACHE_HOME. Raises UsageError."""
    named = _folder("XDG_CACHE_HOME", os.environ, "brewctl")
    return named or _users_own(platformdirs.user_cache_path, "XDG_CACHE_HOME")


def _folder(variable: str, environ: Mapping[str, str], *below: str) -> Path | None:
    """Return the folder that a variable names; None where it names none."""
    if not (named := environ.get(variable)):
        return None
    try:
        return Path(named).expanduser().absolute().joinpath(*below)
    except RuntimeError:
        raise UsageError(f"{variable}: no home folder for {named!r}") from None
    except OSError:
        raise UsageError(f"{variable}: {named!r} is below a working directory that is gone") from None


def _users_own(default: Callable[[str], Path], variable: str) -> Path:
    try:
        return default("brewctl")
    except RuntimeError:
        user = f"user {os.geteuid()} has no home folder: HOME is not set to one"
        raise UsageError(user, hint=f"set {variable} to a folder of yours") from None


def _addresses(name: str, text: str) -> tuple[str, ...]:
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or int(port) not in _PORTS:
            raise UsageError(f"{ENVIRONMENT[name]}: {address!r} is not HOST:PORT", hint="for example 127.0.0.1:9092")
    return addresses


def _topic(text: str) -> str:
    if text and (text in {".", ".."} or not _TOPIC_NAME.fullmatch(text)):
        hint = "use up to 245 letters, digits, '.', '_', '-'"
        raise UsageError(f"BREW_TOPIC: {text[:80]!r} is no topic name", hint=hint)
    return text


def _downstreams(text: str) -> tuple[str, ...]:
    """Return each MODULE:NAME once, in its order. Raises UsageError for a part that is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in SHORT_NAMES and not DOWNSTREAM_NAME.fullmatch(part):
            hint = f"use {', '.join(SHORT_NAMES)}, or one of your own such as loyalty:points"
            raise UsageError(f"BREW_DOWNSTREAMS: {part[:80]!r} is not MODULE:NAME", hint=hint)
    return tuple(dict.fromkeys(SHORT_NAMES.get(part, part) for part in parts))


def _group_prefix(text: str) -> str:
    if not _GROUP_PREFIX.fullmatch(text):
        hint = "use up to 100 letters, digits, '.', '_', '-'"
        raise UsageError(f"BREW_GROUP_PREFIX: {text[:80]!r} can't begin a consumer group's name", hint=hint)
    return text


def _kafka_client(text: str) -> KafkaClient:
    try:
        client = KafkaClient(text or KafkaClient.KAFKA_PYTHON_NG)
    except ValueError:
        hint = f"use {' or '.join(KafkaClient)}"
        raise UsageError(f"BREW_KAFKA_CLIENT: {text[:80]!r} is no Kafka client", hint=hint) from None
    if client is KafkaClient.LIBRDKAFKA and not find_spec("confluent_kafka"):
        hint = "pip install 'brewctl[librdkafka]'"
        raise UsageError("BREW_KAFKA_CLIENT: librdkafka is not installed", hint=hint)
    return client
