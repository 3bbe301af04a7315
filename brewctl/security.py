"""Security settings of the connections to the servers: certificates, user names, secrets and the files of these.

They come from the environment, or from a sandbox that runs with TLS. Never from an argument, because the shell's
history and every user's process list show it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self, TypeVar

from brewctl.errors import UsageError

_LONGEST = 64 * 1024
_SWITCH = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
Choice = TypeVar("Choice", bound=StrEnum)


class Protocol(StrEnum):
    """The security protocol of connections to Kafka, by Kafka's own names."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def encrypts(self) -> bool:
        """Whether connections use TLS."""
        return self in {Protocol.SSL, Protocol.SASL_SSL}

    @property
    def authenticates(self) -> bool:
        """Whether it needs a user name and a password."""
        return self in {Protocol.SASL_PLAINTEXT, Protocol.SASL_SSL}


class Mechanism(StrEnum):
    """The SASL mechanism: how a client proves a user's password to Kafka."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


@dataclass(frozen=True)
class Secret:
    """A password or a token: the text itself, or the file that holds it. `variable`: its name in messages."""

    variable: str = ""
    text: str = field(default="", repr=False)
    file: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.file)

    @classmethod
    def of(cls, variable: str, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the secret of a variable, or of the file that `variable`_FILE names; a false one if neither is set.

        Raises UsageError if both are set.
        """
        return cls(variable, *_either(variable, environ.get(variable, ""), environ.get(f"{variable}_FILE", "")))

    @property
    def named_by(self) -> str:
        """The variable that was set: `variable`, or `variable`_FILE."""
        return f"{self.variable}_FILE" if self.file else self.variable

    def read(self) -> str:
        """Return the text. A file is read now, without the newline at its end. Raises UsageError."""
        if not self.file:
            return self.text
        name = f"{self.variable}_FILE"
        try:
            with Path(self.file).open("rb") as file:
                raw = file.read(_LONGEST + 1)
            text = raw.decode().removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise UsageError(f"{name}: {self.file} can't be read ({(error.strerror or str(error)).lower()})") from None
        except UnicodeDecodeError:
            raise UsageError(f"{name}: {self.file} is no UTF-8 text") from None
        if not text or len(raw) > _LONGEST or set(text) & {"\n", "\r", "\0"}:
            reason = "is empty" if not text else "must hold one line, the secret alone"
            raise UsageError(f"{name}: {self.file} {reason}")
        return text


@dataclass(frozen=True)
class DatabaseSecurity:
    """The secrets of PostgreSQL's connections. `url`: the file that holds the whole URL, if there is one.

    `password`: for a URL without one.
    """

    url: Secret = Secret("BREW_DATABASE_URL")
    password: Secret = Secret("BREW_DATABASE_PASSWORD")


@dataclass(frozen=True)
class KafkaSecurity:
    """The security settings of Kafka's clients. Files are PEM. An empty `ca` means the system's authorities."""

    protocol: Protocol = Protocol.PLAINTEXT
    mechanism: Mechanism = Mechanism.SCRAM_SHA_512
    username: str = ""
    password: Secret = Secret("BREW_KAFKA_PASSWORD")
    ca: str = ""
    certificate: str = ""
    key: str = ""
    key_password: Secret = Secret("BREW_KAFKA_KEY_PASSWORD")


@dataclass(frozen=True)
class OrderSecurity:
    """The security settings of order-service's clients. Files are PEM. `tls` without `ca`: the system's authorities."""

    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token: Secret = Secret("BREW_ORDER_TOKEN")

    @property
    def encrypts(self) -> bool:
        """Whether connections use TLS."""
        return bool(self.tls or self.ca or self.certificate)


PLAINTEXT = OrderSecurity()

DATABASE = {
    "database_url": "BREW_DATABASE_URL",
    "database_url_file": "BREW_DATABASE_URL_FILE",
    "database_password": "BREW_DATABASE_PASSWORD",
    "database_password_file": "BREW_DATABASE_PASSWORD_FILE",
}
# Grouped by server, because a sandbox's settings are only for its own servers.
KAFKA = {
    "kafka_protocol": "BREW_KAFKA_SECURITY_PROTOCOL",
    "kafka_mechanism": "BREW_KAFKA_SASL_MECHANISM",
    "kafka_username": "BREW_KAFKA_USERNAME",
    "kafka_password": "BREW_KAFKA_PASSWORD",
    "kafka_password_file": "BREW_KAFKA_PASSWORD_FILE",
    "kafka_ca": "BREW_KAFKA_CA_FILE",
    "kafka_certificate": "BREW_KAFKA_CERT_FILE",
    "kafka_key": "BREW_KAFKA_KEY_FILE",
    "kafka_key_password": "BREW_KAFKA_KEY_PASSWORD",
    "kafka_key_password_file": "BREW_KAFKA_KEY_PASSWORD_FILE",
}
ORDER = {
    "order_tls": "BREW_ORDER_TLS",
    "order_ca": "BREW_ORDER_CA_FILE",
    "order_certificate": "BREW_ORDER_CERT_FILE",
    "order_key": "BREW_ORDER_KEY_FILE",
    "order_token": "BREW_ORDER_TOKEN",
    "order_token_file": "BREW_ORDER_TOKEN_FILE",
}


def database(named: Mapping[str, str]) -> DatabaseSecurity:
    """Return PostgreSQL's security settings, from values by the names in DATABASE. Raises UsageError."""
    url = _secret("database_url", DATABASE, named)
    return DatabaseSecurity(
        url=url if url.file else DatabaseSecurity.url,
        password=_secret("database_password", DATABASE, named),
    )


def kafka(chosen: Mapping[str, str]) -> KafkaSecurity:
    """Return the security settings of Kafka's clients, from values by the names in KAFKA. Raises UsageError."""
    protocol = _one_of(Protocol, "kafka_protocol", chosen, Protocol.PLAINTEXT)
    security = KafkaSecurity(
        protocol=protocol,
        mechanism=_one_of(Mechanism, "kafka_mechanism", chosen, Mechanism.SCRAM_SHA_512),
        username=chosen.get("kafka_username", ""),
        password=_secret("kafka_password", KAFKA, chosen),
        ca=chosen.get("kafka_ca", ""),
        certificate=chosen.get("kafka_certificate", ""),
        key=chosen.get("kafka_key", ""),
        key_password=_secret("kafka_key_password", KAFKA, chosen),
    )
    if protocol.authenticates and not (security.username and security.password):
        lacking = KAFKA["kafka_password" if security.username else "kafka_username"]
        raise UsageError(f"{KAFKA['kafka_protocol']}={protocol} wants a user: {lacking} is not set")
    return security


def order(chosen: Mapping[str, str]) -> OrderSecurity:
    """Return the security settings of order-service's clients, from values by the names in ORDER. Raises UsageError."""
    tls = _SWITCH.get(chosen.get("order_tls", "").lower())
    if tls is None:
        raise UsageError(f"{ORDER['order_tls']}: {chosen['order_tls'][:80]!r} is neither 1 nor 0", hint="1 is TLS")
    for given, lacking in (("order_certificate", "order_key"), ("order_key", "order_certificate")):
        if chosen.get(given) and not chosen.get(lacking):
            raise UsageError(f"{ORDER[given]} is set without {ORDER[lacking]}", hint="a certificate goes with its key")
    return OrderSecurity(
        tls=tls,
        ca=chosen.get("order_ca", ""),
        certificate=chosen.get("order_certificate", ""),
        key=chosen.get("order_key", ""),
        token=_secret("order_token", ORDER, chosen),
    )


def environment(kafka: KafkaSecurity, order: OrderSecurity) -> dict[str, str]:
    """Return the variables that give a process these settings. Settings that are not set are empty."""
    values = {
        "kafka_protocol": kafka.protocol.value,
        "kafka_mechanism": kafka.mechanism.value,
        "kafka_username": kafka.username,
        "kafka_password": kafka.password.text,
        "kafka_password_file": kafka.password.file,
        "kafka_ca": kafka.ca,
        "kafka_certificate": kafka.certificate,
        "kafka_key": kafka.key,
        "kafka_key_password": kafka.key_password.text,
        "kafka_key_password_file": kafka.key_password.file,
        "order_tls": "1" if order.tls else "",
        "order_ca": order.ca,
        "order_certificate": order.certificate,
        "order_key": order.key,
        "order_token": order.token.text,
        "order_token_file": order.token.file,
    }
    variables = KAFKA | ORDER
    return {variables[name]: value for name, value in values.items()}


def _secret(name: str, variables: Mapping[str, str], chosen: Mapping[str, str]) -> Secret:
    variable = variables[name]
    return Secret(variable, *_either(variable, chosen.get(name, ""), chosen.get(f"{name}_file", "")))


def _either(variable: str, text: str, file: str) -> tuple[str, str]:
    if text and file:
        raise UsageError(f"{variable} and {variable}_FILE are both set", hint="unset one of them")
    return text, file


def _one_of(kind: type[Choice], name: str, chosen: Mapping[str, str], default: Choice) -> Choice:
    try:
        return kind(chosen.get(name) or default)
    except ValueError:
        hint = f"use {', '.join(kind)}"
        raise UsageError(f"{KAFKA[name]}: {chosen[name][:80]!r} is none of Kafka's", hint=hint) from None
