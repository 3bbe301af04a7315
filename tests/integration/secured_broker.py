"""A broker of the tests' own that wants TLS, users and passwords, and the certificates and users for it."""

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trustme
from confluent_kafka import admin
from cryptography.hazmat.primitives import serialization

from brewctl.config import Settings
from brewctl.sandbox import processes
from brewctl.security import KafkaSecurity, Mechanism, Protocol, Secret
from tests.integration.own_broker import OwnBroker, own_broker

USER, PASSWORD = "brew", "pass word;with=marks,"
# Each speaks its protocol in its own way.
LISTENERS = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "LOCKED": "SASL_SSL",
    "SCRAM256": "SASL_SSL",
    "CLEAR": "SASL_PLAINTEXT",
    "EXPIRED": "SSL",
    "ELSEWHERE": "SSL",
    "PROXIED": "SASL_SSL",  # sends its clients to a port where a test puts a proxy
}
_ADMIN: Any = admin  # its types leave these names out
_MECHANISMS = (_ADMIN.ScramMechanism.SCRAM_SHA_256, _ADMIN.ScramMechanism.SCRAM_SHA_512)
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


@dataclass(frozen=True)
class Secured:
    """The broker, and the files for its clients."""

    broker: OwnBroker
    folder: Path
    proxy_port: int

    def settings(self, listener: str, **security: object) -> Settings:
        """Return settings for one listener: what it wants, changed by `security`."""
        protocol = Protocol(LISTENERS[listener])
        chosen = KafkaSecurity(protocol=protocol, ca=str(self.folder / "ca.pem"))
        if protocol.authenticates:
            password = Secret("BREW_KAFKA_PASSWORD", PASSWORD)
            mechanism = Mechanism.SCRAM_SHA_256 if listener == "SCRAM256" else Mechanism.SCRAM_SHA_512
            chosen = replace(chosen, username=USER, password=password, mechanism=mechanism)
        address = self.broker.listeners[listener]
        return Settings(brokers=(address,), kafka_security=replace(chosen, **security))  # type: ignore[arg-type]

    def change_password(self, user: str, password: str) -> None:
        """Give a user a password, of both kinds of SCRAM."""
        client = admin.AdminClient({"bootstrap.servers": self.broker.address})
        for mechanism in _MECHANISMS:  # one a request
            change = _ADMIN.UserScramCredentialUpsertion(
                user, _ADMIN.ScramCredentialInfo(mechanism, 4096), password.encode()
            )
            for done in client.alter_user_scram_credentials([change]).values():
                done.result(10)


def write_pair(folder: Path, name: str, certificate: trustme.LeafCert) -> None:
    """Write a certificate as NAME.pem and its key as NAME.key; NAME.both has both, as Kafka wants them."""
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for suffix, content in ((".pem", chain), (".key", plain), (".both", plain + chain)):
        (folder / f"{name}{suffix}").write_bytes(content)


def write_pairs(folder: Path, *, elsewhere: str, client: str) -> trustme.CA:
    """Write the files of an authority, and those that do not fit; return it.

    `elsewhere`: the host that a pair is for which nobody connects to; `client`: whom its and a stranger's pair name.
    """
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger-ca.pem")
    now = dt.datetime.now(dt.UTC)
    expired = authority.issue_cert("127.0.0.1", not_before=now - dt.timedelta(9), not_after=now - dt.timedelta(1))
    write_pair(folder, "expired", expired)
    write_pair(folder, "elsewhere", authority.issue_cert(elsewhere))
    write_pair(folder, "client", authority.issue_cert(client))
    write_pair(folder, "stranger", stranger.issue_cert(client))
    return authority


def locked(key: Path, password: str = "open sesame") -> bytes:
    """Return a key that wants a password."""
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(password.encode())
    return plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@contextlib.contextmanager
def secured_broker(folder: Path) -> Iterator[Secured]:
    """Start one; skips where the sandbox can't be had."""
    files = folder / "files"
    files.mkdir(parents=True)
    authority = write_pairs(files, elsewhere="kafka.example", client="client")
    write_pair(files, "broker", authority.issue_cert("127.0.0.1", "localhost"))
    proxy_port = processes.free_port()
    detours = {"PROXIED": f"127.0.0.1:{proxy_port}"}
    with own_broker(folder / "broker", properties=_properties(files), listeners=LISTENERS, detours=detours) as broker:
        secured = Secured(broker, files, proxy_port)
        secured.change_password(USER, PASSWORD)
        yield secured


def _properties(files: Path) -> dict[str, str]:
    own = {"EXPIRED": "expired", "ELSEWHERE": "elsewhere"}
    found: dict[str, str] = {}
    for name, protocol in LISTENERS.items():
        prefix = f"listener.name.{name.lower()}"
        if protocol.endswith("SSL"):
            found |= {
                f"{prefix}.ssl.keystore.type": "PEM",
                f"{prefix}.ssl.keystore.location": str(files / f"{own.get(name, 'broker')}.both"),
                f"{prefix}.ssl.truststore.type": "PEM",
                f"{prefix}.ssl.truststore.location": str(files / "ca.pem"),
                f"{prefix}.ssl.client.auth": "required" if name == "MUTUAL" else "none",
            }
        if protocol.startswith("SASL"):
            mechanisms = ["SCRAM-SHA-256"] if name == "SCRAM256" else list(Mechanism)
            found |= {
                f"{prefix}.sasl.enabled.mechanisms": ",".join(mechanisms),
                f"{prefix}.plain.sasl.jaas.config": f'{_PLAIN} user_{USER}="{PASSWORD}";',
                f"{prefix}.scram-sha-256.sasl.jaas.config": _SCRAM,
                f"{prefix}.scram-sha-512.sasl.jaas.config": _SCRAM,
            }
    return found
