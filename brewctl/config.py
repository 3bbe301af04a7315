"""Settings: the addresses of the servers, how they are connected to, and which downstreams run.

Each server setting comes from the flag, else the environment, else the running sandbox, else the default.
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
from brewctl.limits import Limits

TOPIC = "usecase-09-01-order-created"
_PORTS = range(1, 65536)
_PORT = re.compile(r"[0-9]{1,5}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
# Kafka's limit is 249; 4 characters are left for the dead-letter topic's ".dlq".
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,245}")
# The addresses of the servers that docker-compose.yml starts.
DEFAULT_DATABASE_URL = "postgresql://brew:brew@127.0.0.1:5432/brew"
DEFAULT_BROKERS = ("127.0.0.1:9092", "127.0.0.1:9093", "127.0.0.1:9094")
DEFAULT_ORDER_ADDRS = ("127.0.0.1:50081",)
# The story's own downstreams.
DEFAULT_DOWNSTREAMS = ("brewctl.roles.inventory:DOWNSTREAM", "brewctl.roles.notifications:DOWNSTREAM")
WITH_CHANNELS = "notifications"
CHANNEL_VARIABLE = "BREW_NOTIFY_CHANNEL"
SHORT_NAMES = dict(zip(("inventory", "notifications"), DEFAULT_DOWNSTREAMS, strict=True))
DOWNSTREAM_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
# The characters of a group's name; prefix and name together fit Kafka's limit.
_GROUP_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,100}")


class LogFormat(StrEnum):
    """The format of log lines."""

    LOGFMT = "logfmt"
    JSON = "json"


class Channel(StrEnum):
    """How notifications are sent: only as a row of the table, or also by a call of a webhook."""

    LOG = "log"
    WEBHOOK = "webhook"


class KafkaClient(StrEnum):
    """The library that sends and reads records."""

    KAFKA_PYTHON_NG = "kafka-python-ng"
    LIBRDKAFKA = "librdkafka"


@dataclass(frozen=True)
class Settings:
    """All settings. `configured`: the names of the server settings that a flag or the environment gave."""

    database_url: str = field(default=DEFAULT_DATABASE_URL, repr=False)  # may hold a password
    brokers: tuple[str, ...] = DEFAULT_BROKERS
    topic: str = TOPIC
    order_addrs: tuple[str, ...] = DEFAULT_ORDER_ADDRS
    # The downstreams that read the topic, as MODULE:NAME; and the prefix of their consumer groups' names in Kafka.
    downstreams: tuple[str, ...] = DEFAULT_DOWNSTREAMS
    group_prefix: str = ""
    kafka_client: KafkaClient = KafkaClient.KAFKA_PYTHON_NG
    database_security: security.DatabaseSecurity = field(default_factory=security.DatabaseSecurity)
    # Downstreams' own databases: each URL, or the file that holds it, with its variable.
    own_databases: tuple[security.Secret, ...] = ()
    kafka_security: security.KafkaSecurity = field(default_factory=security.KafkaSecurity)
    order_security: security.OrderSecurity = field(default_factory=security.OrderSecurity)
    configured: frozenset[str] = frozenset()
    # For errors about this database: the command that makes its tables, and the variable that sets its URL.
    init_command: str = "brewctl db init"
    database_variable: str = "BREW_DATABASE_URL"
    limits: Limits = field(default_factory=Limits)

    @property
    def dead_letter_topic(self) -> str:
        """The topic of records that no consumer can read."""
        return f"{self.topic}.dlq"

    @property
    def impatient(self) -> "Settings":
        """The same settings with short timeouts, for callers that ask again and again."""
        limits = replace(
            self.limits, database_connect_s=2, kafka_connect_s=2.0, kafka_admin_s=3.0, kafka_patience_s=1.0
        )
        return replace(self, limits=limits)


def own_database_variable(group: str) -> str:
    """Return the variable that sets a downstream's own database. With `_FILE` appended, the file that holds the URL."""
    return f"BREW_{re.sub('[^A-Z0-9]', '_', group.upper())}_DATABASE_URL"


_OWN_DATABASE = re.compile(r"(BREW_[A-Z0-9_]+_DATABASE_URL)(_FILE)?")


# The address of a role's metrics and health pages. For one process only: its child processes get another, or none.
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
    """Merge the sources; the first that gives a value wins: `flags`, `environ`, the running `sandbox`, the defaults.

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
    named_own = sorted(_own_databases(environ))
    own = tuple((_own_databases({} if given["database_url"] else sandbox) | _own_databases(environ)).values())
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
        own_databases=own,
        kafka_security=security.kafka(_of_server("brokers", security.KAFKA, given, environ, sandbox)),
        order_security=security.order(_of_server("order_addrs", security.ORDER, given, environ, sandbox)),
        configured=frozenset([name for name, value in given.items() if value] + named_own),
        limits=limits or Limits(),
    )


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that give a `brewctl` process these settings. Secrets are passed so, never as arguments."""
    database = settings.database_security
    values = {
        # A URL in a file is not copied out of it.
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
    own = {each.named_by: each.file or each.text for each in settings.own_databases}
    return {variables[name]: value for name, value in (values | secrets).items()} | secured | own


def _own_databases(named: Mapping[str, str]) -> dict[str, security.Secret]:
    """Return downstreams' own databases, by variable. An empty variable counts as not set.

    Raises UsageError if one is set both as a URL and as a file.
    """
    found: dict[str, security.Secret] = {}
    for name, value in named.items():
        if not (value.strip() and (match := _OWN_DATABASE.fullmatch(name))):
            continue
        variable, of_file = match.groups()
        if variable in found:
            raise UsageError(f"{variable} and {variable}_FILE are both set", hint="unset one of them")
        text, file = ("", value.strip()) if of_file else (value.strip(), "")
        found[variable] = security.Secret(variable, text, file)
    return found


def _of_server(
    address: str,
    variables: Mapping[str, str],
    given: Mapping[str, str],
    environ: Mapping[str, str],
    sandbox: Mapping[str, str],
) -> dict[str, str]:
    """Return the security settings of a server, from the environment, else from the sandbox.

    Those of the sandbox are for its own server: they are not used if a flag or the environment gave an address, nor
    mixed with settings of the environment.
    """
    named = {name: environ.get(variable, "").strip() for name, variable in variables.items()}
    if given[address] or any(named.values()):
        return named
    return {name: sandbox.get(name, "") for name in variables}


def short_name(downstream: str) -> str:
    """Return a downstream's name for users: the short name if it is the story's own, else MODULE:NAME."""
    return next((short for short, name in SHORT_NAMES.items() if name == downstream), downstream)


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the sandbox's folder: BREW_HOME, else one in the user's state directory. Raises UsageError."""
    return _folder("BREW_HOME", environ) or _users_own(platformdirs.user_state_path, "BREW_HOME")


def cache() -> Path:
    """Return the folder for downloads, which all sandboxes of a user share: in XDG_CACHE_HOME. Raises UsageError."""
    named = _folder("XDG_CACHE_HOME", os.environ, "brewctl")
    return named or _users_own(platformdirs.user_cache_path, "XDG_CACHE_HOME")


def _folder(variable: str, environ: Mapping[str, str], *below: str) -> Path | None:
    """Return the folder that a variable names; None if it is not set."""
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
    """Return each MODULE:NAME once, in the given order. Raises UsageError for a part of another form."""
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
