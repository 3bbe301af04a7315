"""Checks whether the addresses that brokers advertise can be reached.

A client asks one configured broker for the addresses of all brokers, and then connects to those.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kafka import client_async, errors
from kafka.conn import BrokerConnection
from kafka.protocol.metadata import MetadataRequest_v4

from brewctl.config import Settings
from brewctl.delivery.broker.outcomes import Refusal
from brewctl.security import KafkaSecurity, Protocol

_CONNECT_S, _LATE_S = 2.0, 2.5
_WAIT_S = 0.02
_SILENT = "does not answer"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Unreached:
    """A broker that its cluster counts as alive, but that this machine can't connect to."""

    node_id: int
    address: str
    why: str

    mend = "start that broker, or set its advertised.listeners to an address that this machine can connect to"

    def __str__(self) -> str:
        return f"broker {self.node_id} is advertised as {self.address}, which {self.why}"


def why_not(address: str, *, timeout_s: float = _CONNECT_S) -> str:
    """Return why HOST:PORT can't be connected to; "" if it can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except socket.gaierror:
        return "can't be resolved from here"
    except TimeoutError:
        return _SILENT
    except ConnectionRefusedError:
        return "refuses connections"
    except OSError as error:
        return f"can't be connected to ({(error.strerror or str(error)).lower()})"
    return ""


def unreached(brokers: Sequence[tuple[int, str]]) -> list[Unreached]:
    """Try to connect to all these brokers (id, address) at the same time. Return those that failed."""
    reasons = _together(why_not, [address for _, address in brokers], _SILENT)
    return [Unreached(*broker, why) for broker, why in zip(brokers, reasons, strict=True) if why]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The configured addresses that answered, advertised brokers that can't be reached, and brokers that refused."""

    answered: list[str]
    unreached: list[Unreached]
    refused: list[Refusal]


def diagnose(settings: Settings) -> Diagnosis:
    """Ask each configured address for the brokers, and try to connect to each of them."""
    options = _options(settings)

    def ask(address: str) -> list[tuple[int, str]] | Refusal:
        return _advertised(address, settings.kafka_security, options)

    nobody: list[tuple[int, str]] | Refusal = []
    answers = dict(zip(settings.brokers, _together(ask, settings.brokers, nobody), strict=True))
    refused = [answer for answer in answers.values() if isinstance(answer, Refusal)]
    told = {address: answer for address, answer in answers.items() if not isinstance(answer, Refusal) and answer}
    advertised = {broker for brokers in told.values() for broker in brokers}
    return Diagnosis(list(told), unreached(sorted(advertised)), refused)


def _options(settings: Settings) -> dict[str, Any]:
    if settings.kafka_security.protocol is Protocol.PLAINTEXT:
        return {}
    from brewctl.delivery.broker.kafka_python import secured  # noqa: PLC0415 - importing it changes the library

    return secured.options(settings.kafka_security, settings.brokers)


def _together(ask: Callable[[str], _T], addresses: Sequence[str], late: _T) -> list[_T]:
    """Call `ask` for all addresses at once. `late` is the result of a call that takes too long, as a look-up may."""
    answers = dict.fromkeys(addresses, late)

    def note(address: str) -> None:
        answers[address] = ask(address)

    # Daemons, so that a late call does not delay the end of the process.
    threads = [threading.Thread(target=note, args=(address,), daemon=True) for address in answers]
    deadline = time.monotonic() + _LATE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [answers[address] for address in addresses]


def _advertised(address: str, security: KafkaSecurity, options: Mapping[str, Any]) -> list[tuple[int, str]] | Refusal:
    """Return the brokers (id, address) that the broker at this address knows, or why it refuses; [] without answer."""
    host, _, port = address.rpartition(":")
    connection = _kind(options)(
        host.strip("[]"), int(port), socket.AF_UNSPEC, client_id="brewctl", api_version=None, **options
    )
    deadline = time.monotonic() + _CONNECT_S
    ended: Exception | None = None
    with contextlib.closing(connection), contextlib.suppress(errors.KafkaError, OSError):
        if connection.connect_blocking(_CONNECT_S):
            asked = connection.send(MetadataRequest_v4([], False))
            while not asked.is_done and time.monotonic() < deadline:
                for answer, future in connection.recv():
                    future.success(answer)
                time.sleep(_WAIT_S)
            if asked.succeeded():
                return [(node_id, f"{host}:{port}") for node_id, host, port, _rack in asked.value.brokers]
            ended = asked.exception
    refused = getattr(connection, "refused", False)
    if not ended and not refused:
        return []
    from brewctl.delivery.broker import listener_probe  # noqa: PLC0415 - only after a failed connection

    # Only a broker that refused the connection may have found the user or the password wrong.
    return listener_probe.find(address, security, connection.why if refused else None) or []


def _kind(options: Mapping[str, Any]) -> Any:
    return client_async.BrokerConnection if options else BrokerConnection
