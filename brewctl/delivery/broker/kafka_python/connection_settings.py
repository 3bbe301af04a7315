"""The library's options for a connection, and the library's errors as BrewError."""

import contextlib
import selectors
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from kafka import errors

from brewctl.config import Settings
from brewctl.delivery.broker.failure_reasons import RIGHTS, forbidden, unreachable
from brewctl.errors import BrewError
from brewctl.security import Protocol

_HEADERS_SINCE = (0, 11)


class Selector(selectors.DefaultSelector):
    """A selector that ignores a socket which the client has closed in the meantime.

    Without it a race inside the client ends the role (kafka-python-ng issue 177).
    """

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a socket, unless it is closed."""
        try:
            return super().register(fileobj, events, data)
        except ValueError:
            return selectors.SelectorKey(fileobj, -1, events, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a socket for something else, unless it is closed."""
        try:
            return super().modify(fileobj, events, data)
        except ValueError:
            return selectors.SelectorKey(fileobj, -1, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return how a socket is watched. Raises KeyError if it is not watched, or closed."""
        try:
            return super().get_key(fileobj)
        except ValueError:
            raise KeyError(fileobj) from None

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Stop watching a socket, unless it is closed."""
        try:
            return super().unregister(fileobj)
        except ValueError:
            return selectors.SelectorKey(fileobj, -1, 0, None)


FORBIDDEN = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)


def _whose(error: Exception) -> str:
    """Return what a user has no right to, such as "topic orders": by name if the error has it, not a whole answer."""
    kind = type(error).__name__.partition("Authorization")[0].lower()
    name = error.args[0] if error.args else ""
    if isinstance(name, set | frozenset):
        name = " and ".join(sorted(name))
    return f"the {kind}" if not isinstance(name, str) or len(name.split()) != 1 else f"{kind} {name}"


def connection(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the options of every client of this library. Raises UsageError for a file that can't be used."""
    secure = {}
    if settings.kafka_security.protocol is not Protocol.PLAINTEXT:
        from brewctl.delivery.broker.kafka_python import secured  # noqa: PLC0415 - importing it changes the library

        secure = secured.options(settings.kafka_security, settings.brokers)
    return {
        "bootstrap_servers": list(settings.brokers),
        "client_id": name,
        "api_version_auto_timeout_ms": int(settings.limits.kafka_connect_s * 1000),
        "metadata_max_age_ms": int(settings.limits.kafka_metadata_age_s * 1000),
        "selector": Selector,
        **secure,
    }


def require_files(settings: Settings) -> None:
    """Raise UsageError if a certificate or a password of these settings can't be read from its file."""
    connection(settings, name="")


def library() -> str:
    """Return the installed library's name and version."""
    name, *_ = metadata.packages_distributions()["kafka"]
    return f"{name} {metadata.version(name)}"


def require_headers(client: Any) -> None:
    """Close a client that guessed a broker version without record headers. Raises UnrecognizedBrokerVersion.

    On a faulty network the library may take a broker that answers late for such an old one, and would speak the old
    protocol for ever.
    """
    if client.config["api_version"] < _HEADERS_SINCE:
        client.close()
        raise errors.UnrecognizedBrokerVersion


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Raise the library's errors as BrewError: UnreachableError, ForbiddenError, or one that names the Kafka error."""
    where = ",".join(settings.brokers)
    try:
        yield
    except (
        errors.NoBrokersAvailable,
        errors.NodeNotReadyError,
        errors.KafkaConnectionError,
        errors.KafkaTimeoutError,
        errors.RequestTimedOutError,
        errors.UnrecognizedBrokerVersion,
    ) as error:
        raise unreachable(settings) from error
    except FORBIDDEN as error:
        raise forbidden(settings, f"do this with {_whose(error)}") from error
    except errors.InvalidReplicationFactorError as error:
        raise BrewError(f"kafka {where} has too few brokers for that replication factor") from error
    except errors.KafkaError as error:
        raise BrewError(f"kafka {where}: {words(error)}") from error


def words(error: Exception | None) -> str:
    """Write an error of the client in one line."""
    if isinstance(error, FORBIDDEN):
        return f"this user has no right to {_whose(error)}: {RIGHTS}"
    text = " ".join(str(error).split())
    name = type(error).__name__ if isinstance(error, Exception) else getattr(error, "__name__", "")
    return (text if name in text else f"{name} {text}".strip())[:300]
