"""A secured sandbox: its files, and how its servers are set so that nobody talks to them without TLS and a password.

Servers name the files relative to where they work: a home's own name may have characters that their settings give
another meaning.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from brewctl.config import SHORT_NAMES
from brewctl.security import KafkaSecurity, Mechanism, Protocol, Secret

# The user of the sandbox, of PostgreSQL and of Kafka, who may do everything there.
USER = "brew"
# Users of both with no right of their own, named as `db grants` and `topic grants` name who gets which.
ROLES = ("owner", "order", "publisher", *SHORT_NAMES, "reader", "operator")
# Of a certificate NAME.pem and its key NAME.key.
AUTHORITY, KAFKA, POSTGRES, ORDER = "ca", "kafka", "postgres", "order"
KAFKA_STORE = "kafka.store.pem"
_PASSWORD = "kafka-password"  # noqa: S105 - a file's name
_PASSFILE = "pgpass"
_USERS = "users"
_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


def folder(home: Path) -> Path:
    """Return where a home has its certificates and passwords."""
    return home / "tls"


def write(file: Path, content: bytes) -> None:
    """Write a file for its owner alone, whole or not at all."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
    temporary.replace(file)


def write_if_other(file: Path, content: bytes) -> None:
    """Write a file like `write`, unless it is there like that; its mode may have been changed."""
    try:
        file.chmod(0o600)
        there = file.read_bytes() == content
    except OSError:
        there = False
    if not there:
        write(file, content)


def name(role: str) -> str:
    """Return the name of a role's user."""
    return f"{USER}_{role}"


def write_passwords(home: Path, *, postgres: str, kafka: str, users: Mapping[str, str]) -> None:
    """Write the passwords as clients read them, where they are not there like that.

    `users`: of each user beside USER the one for both servers.
    """
    (folder(home) / _USERS).mkdir(mode=0o700, exist_ok=True)
    (folder(home) / _USERS).chmod(0o700)
    for user, of_postgres, of_kafka in ((USER, postgres, kafka), *((name, both, both) for name, both in users.items())):
        write_if_other(_file(home, user, _PASSWORD), f"{of_kafka}\n".encode())
        write_if_other(_file(home, user, _PASSFILE), f"127.0.0.1:*:*:{user}:{of_postgres}\n".encode())


def _file(home: Path, user: str, name: str) -> Path:
    return folder(home) / name if user == USER else folder(home) / _USERS / f"{user}.{name}"


def database_url(home: Path, port: int, database: str, *, user: str = USER) -> str:
    """Return where PostgreSQL is. Without a password: the file is named that has it."""
    files = {"sslrootcert": folder(home) / f"{AUTHORITY}.pem", "passfile": _file(home, user, _PASSFILE)}
    named = "".join(f"&{keyword}={quote(os.fsencode(file), safe='/')}" for keyword, file in files.items())
    return f"postgresql://{user}@127.0.0.1:{port}/{database}?sslmode=verify-full{named}"


def kafka_security(home: Path, *, user: str = USER) -> KafkaSecurity:
    """Return how clients connect to Kafka."""
    return KafkaSecurity(
        protocol=Protocol.SASL_SSL,
        mechanism=Mechanism.SCRAM_SHA_512,
        username=user,
        password=Secret("BREW_KAFKA_PASSWORD", file=str(_file(home, user, _PASSWORD))),
        ca=str(folder(home) / f"{AUTHORITY}.pem"),
    )


def kafka_endpoints(home: Path, *, user: str = USER) -> dict[str, str]:
    """Return the same by the names of `security.KAFKA`."""
    security = kafka_security(home, user=user)
    return {
        "kafka_protocol": security.protocol.value,
        "kafka_mechanism": security.mechanism.value,
        "kafka_username": security.username,
        "kafka_password_file": security.password.file,
        "kafka_ca": security.ca,
    }


def order_endpoints(home: Path) -> dict[str, str]:
    """Return how clients connect to order-service, by the names of `security.ORDER`."""
    return {"order_ca": str(folder(home) / f"{AUTHORITY}.pem")}


def serving(home: Path) -> tuple[str, str]:
    """Return the files of order-service's certificate and its key."""
    return str(folder(home) / f"{ORDER}.pem"), str(folder(home) / f"{ORDER}.key")


def kafka_properties(*, detours: bool) -> dict[str, str]:
    """Return what a node is set to beside all the rest; it works two folders below the home.

    Users come in at CLIENTS and DETOUR. At INTERNAL and CONTROLLER come the nodes alone: with their certificate, as
    passwords are known only once the metadata are, which they fetch there.
    """
    users = ("CLIENTS", *(["DETOUR"] if detours else []))
    protocols = {**dict.fromkeys(users, "SASL_SSL"), "INTERNAL": "SSL", "CONTROLLER": "SSL"}
    mechanism = Mechanism.SCRAM_SHA_512.value
    files = f"../../{folder(Path()).name}"
    return {
        "inter.broker.listener.name": "INTERNAL",
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "sasl.enabled.mechanisms": mechanism,
        **{f"listener.name.{name.lower()}.{mechanism.lower()}.sasl.jaas.config": _LOGIN for name in users},
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": f"{files}/{KAFKA_STORE}",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": f"{files}/{AUTHORITY}.pem",
        "listener.name.internal.ssl.client.auth": "required",
        "listener.name.controller.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": f"User:{USER};User:CN={KAFKA}",
    }


def scram_arguments(passwords: Mapping[str, str]) -> str:
    """Return what `kafka-storage format` reads of a file, a word each line: its arguments are anybody's to read.

    `passwords`: by the name of the user.
    """
    return "".join(
        f"--add-scram\n{Mechanism.SCRAM_SHA_512}=[name={user},password={password}]\n"
        for user, password in passwords.items()
    )


def postgres_settings() -> dict[str, str]:
    """Return what PostgreSQL is set to; its data are two folders below the home."""
    files = f"../../{folder(Path()).name}"
    return {
        "ssl": "on",
        "ssl_cert_file": f"{files}/{POSTGRES}.pem",
        "ssl_key_file": f"{files}/{POSTGRES}.key",
        "hba_file": "pg_hba.conf",  # made absolute before it goes there
    }


# Without TLS nobody gets in, and with it nobody without a password.
POSTGRES_HBA = "hostssl all,replication all 127.0.0.1/32 scram-sha-256\n"
