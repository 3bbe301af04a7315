"""Finds out why a reachable broker and this client can't connect, to name the setting that does not fit.

Imported only after a failed connection. It asks the broker's listener for its protocol, accepts any certificate for
that, and sends no user name or password.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kafka.errors import IllegalSaslStateError
from kafka.protocol.admin import SaslHandShakeRequest
from kafka.protocol.parser import KafkaProtocol

from brewctl.delivery.broker import certificates
from brewctl.delivery.broker.outcomes import Refusal
from brewctl.delivery.certificate_faults import fault, told
from brewctl.security import KAFKA, KafkaSecurity, Protocol

_HEARD_S = 1.0


@dataclass(frozen=True, slots=True)
class _Listener:
    """A listener's protocol. `mechanisms`: None if it wants no user, or if `fault` ended the handshake before that."""

    encrypts: bool
    mechanisms: tuple[str, ...] | None = None
    fault: str = ""


def find(address: str, security: KafkaSecurity, error: Exception | None) -> Refusal | None:
    """Return why the broker at HOST:PORT ended a connection with these settings by `error`.

    None if no reason is found: the broker may have been stopped, or the network interrupted.
    """
    try:
        listener = _listen(address, security)
    except (OSError, ValueError):
        return None
    return (
        _other_protocol(address, security, listener)
        or _other_mechanism(address, security, listener)
        or _own_certificate(address, security, listener)
        or _certificate(address, security, error)
        or _user(address, security, error)
    )


def _other_protocol(address: str, security: KafkaSecurity, listener: _Listener) -> Refusal | None:
    encrypts, authenticates = listener.encrypts, listener.mechanisms is not None
    same = encrypts == security.protocol.encrypts
    if same and (listener.fault or authenticates == security.protocol.authenticates):
        return None
    if listener.fault:
        speaks = "TLS: SSL or SASL_SSL"
        hint = f"set {KAFKA['kafka_protocol']} to one of these"
    else:
        speaks = f"{'SASL_' * authenticates}{'SSL' if encrypts else 'PLAINTEXT'}"
        hint = f"set {KAFKA['kafka_protocol']}={Protocol(speaks)}"
    if authenticates and not security.username:
        hint += f", {KAFKA['kafka_username']} and {KAFKA['kafka_password']}_FILE"
    return Refusal(address, f"speaks {speaks}, not {security.protocol}", hint)


def _other_mechanism(address: str, security: KafkaSecurity, listener: _Listener) -> Refusal | None:
    if listener.mechanisms is None or security.mechanism in listener.mechanisms:
        return None
    offered = ", ".join(listener.mechanisms)
    return Refusal(
        address, f"does not take {security.mechanism}, but {offered}", f"set {KAFKA['kafka_mechanism']} to one of them"
    )


def _own_certificate(address: str, security: KafkaSecurity, listener: _Listener) -> Refusal | None:
    if not listener.fault:
        return None
    variables = f"{KAFKA['kafka_certificate']} and {KAFKA['kafka_key']}"
    if not security.certificate:
        return Refusal(address, "wants a client certificate", f"set {variables}")
    return Refusal(
        address,
        f"refused the certificate in {security.certificate} ({listener.fault})",
        f"put one into {variables} that the broker trusts",
    )


def _certificate(address: str, security: KafkaSecurity, error: Exception | None) -> Refusal | None:
    cause = error.__cause__ if error else None
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return None
    authorities = security.ca or f"a file that {KAFKA['kafka_ca']} names, where it is none of the system's"
    why, hint = fault(cause, authorities=authorities)
    return Refusal(address, f"has a certificate that {why}", hint)


def _user(address: str, security: KafkaSecurity, error: Exception | None) -> Refusal | None:
    if not security.protocol.authenticates or error is None:
        return None
    variables = f"{KAFKA['kafka_username']} and {KAFKA['kafka_password']}"
    hint = f"correct {variables}{'_FILE' if security.password.file else ''}"
    return Refusal(address, f"refused user {security.username[:80]} ({told(error)})", hint)


def _listen(address: str, security: KafkaSecurity) -> _Listener:
    """Find out which protocol a listener speaks. Raises OSError if that can't be found out."""
    for encrypts in (security.protocol.encrypts, not security.protocol.encrypts):
        context = certificates.context(security, verify=False) if encrypts else None
        try:
            with _connection(address, context) as connection:
                return _Listener(encrypts, _mechanisms(connection, security))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            continue
        except ssl.SSLError as error:
            if error.reason == "WRONG_VERSION_NUMBER":
                continue
            return _Listener(encrypts, fault=told(error))  # a TLS alert: the listener speaks TLS
        except (EOFError, ConnectionError, TimeoutError):
            continue
    raise ConnectionError("it does not say what it speaks")


@contextlib.contextmanager
def _connection(address: str, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_HEARD_S) as plain:
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain, server_hostname=host.strip("[]")) as encrypted:
                yield encrypted


def _mechanisms(connection: socket.socket, security: KafkaSecurity) -> tuple[str, ...] | None:
    """Return the SASL mechanisms of a listener; None if it wants no SASL."""
    protocol = KafkaProtocol(client_id="brewctl", api_version=(0, 11))
    protocol.send_request(SaslHandShakeRequest[1](security.mechanism.value))
    connection.sendall(protocol.send_bytes())
    size = struct.unpack(">i", _read(connection, 4))[0]
    if not 0 < size < 2**16:
        raise ConnectionError("no answer of Kafka's")
    ((_, answer),) = protocol.receive_bytes(struct.pack(">i", size) + _read(connection, size))
    return None if answer.error_code == IllegalSaslStateError.errno else tuple(answer.enabled_mechanisms)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise EOFError
        data += more
    return data
