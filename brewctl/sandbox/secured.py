"""A secured sandbox: its files, and the servers' settings that require TLS and a password of each client.

The settings name files by relative paths, as the home's own path may have characters with a meaning in them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from brewctl.config import SHORT_NAMES
from brewctl.security import KafkaSecurity, Mechanism, Protocol, Secret

# The superuser of the sandbox, in PostgreSQL and in Kafka.
USER = "brew"
# Roles with a user in both servers. `db grants` and `topic grants` give them their rights.
ROLES = ("owner", "order", "publisher", *SHORT_NAMES, "reader", "operator")
# The names of certificates: the files are NAME.pem and NAME.key.
AUTHORITY, KAFKA, POSTGRES, ORDER = "ca", "kafka", "postgres", "order"
KAFKA_STORE = "kafka.store.pem"
_PASSWORD = "kafka-password"  # noqa: S105 - a file's name
_PASSFILE = "pgpass"
_USERS = "users"
_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


def folder(home: Path) -> Path:
    """Return the folder of a home's certificates and passwords."""
    return home / "tls"


def write(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read, atomically."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
    temporary.replace(file)


def write_if_other(file: Path, content: bytes) -> None:
    """Write a file as `write` does, unless it has this content. Its mode is corrected in any case."""
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
    """Write the password files that clients read, where they differ.

    `postgres`, `kafka`: the superuser's passwords. `users`: the password of each other user, for both servers.
    """
    (folder(home) / _USERS).mkdir(mode=0o700, exist_ok=True)
    (folder(home) / _USERS).chmod(0o700)
    for user, of_postgres, of_kafka in ((USER, postgres, kafka), *((name, both, both) for name, both in users.items())):
        write_if_other(_file(home, user, _PASSWORD), f"{of_kafka}\n".encode())
        write_if_other(_file(home, user, _PASSFILE), f"127.0.0.1:*:*:{user}:{of_postgres}\n".encode())


def _file(home: Path, user: str, name: str) -> Path:
    return folder(home) / name if user == USER else folder(home) / _USERS / f"{user}.{name}"


def database_url(home: Path, port: int, database: str, *, user: str = USER) -> str:
    """Return a database's URL. It names the file with the password, not the password."""
    files = {"sslrootcert": folder(home) / f"{AUTHORITY}.pem", "passfile": _file(home, user, _PASSFILE)}
    named = "".join(f"&{keyword}={quote(os.fsencode(file), safe='/')}" for keyword, file in files.items())
    return f"postgresql://{user}@127.0.0.1:{port}/{database}?sslmode=verify-full{named}"


def kafka_security(home: Path, *, user: str = USER) -> KafkaSecurity:
    """Return the settings by which clients connect to Kafka."""
    return KafkaSecurity(
        protocol=Protocol.SASL_SSL,
        mechanism=Mechanism.SCRAM_SHA_512,
        username=user,
        password=Secret("BREW_KAFKA_PASSWORD", file=str(_file(home, user, _PASSWORD))),
        ca=str(folder(home) / f"{AUTHORITY}.pem"),
    )


def kafka_endpoints(home: Path, *, user: str = USER) -> dict[str, str]:
    """Return the settings of `kafka_security` by the names of `security.KAFKA`."""
    security = kafka_security(home, user=user)
    return {
        "kafka_protocol": security.protocol.value,
        "kafka_mechanism": security.mechanism.value,
        "kafka_username": security.username,
        "kafka_password_file": security.password.file,
        "kafka_ca": security.ca,
    }


def order_endpoints(home: Path) -> dict[str, str]:
    """Return the settings by which clients connect to order-service, by the names of `security.ORDER`."""
    return {"order_ca": str(folder(home) / f"{AUTHORITY}.pem")}


def serving(home: Path) -> tuple[str, str]:
    """Return the files of order-service's certificate and its key."""
    return str(folder(home) / f"{ORDER}.pem"), str(folder(home) / f"{ORDER}.key")


def kafka_properties(*, detours: bool) -> dict[str, str]:
    """Return the properties that a secured node has in addition. Its working directory is two levels below the home.

    Users connect to CLIENTS and DETOUR with passwords. Nodes connect to each other at INTERNAL and CONTROLLER with
    their certificate: the passwords are part of the metadata, which a node must fetch there first.
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
    """Return arguments for `kafka-storage format` that create users, one a line, for its arguments file.

    `passwords`: by user name.
    """
    return "".join(
        f"--add-scram\n{Mechanism.SCRAM_SHA_512}=[name={user},password={password}]\n"
        for user, password in passwords.items()
    )


def postgres_settings() -> dict[str, str]:
    """Return PostgreSQL's settings for TLS. Its data directory is two levels below the home."""
    files = f"../../{folder(Path()).name}"
    return {
        "ssl": "on",
        "ssl_cert_file": f"{files}/{POSTGRES}.pem",
        "ssl_key_file": f"{files}/{POSTGRES}.key",
        "hba_file": "pg_hba.conf",  # PostgreSQL makes this path absolute before it changes its directory
    }


# Only connections with TLS and a password match; PostgreSQL rejects all others.
POSTGRES_HBA = "hostssl all,replication all 127.0.0.1/32 scram-sha-256\n"
