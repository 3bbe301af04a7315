"""The library's settings for a connection, and the library's errors in the user's words."""

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
    """Bears with a socket that the client has closed meanwhile: there is nothing to select on it any more.

    Without this a race inside the client ends the role (kafka-python-ng issue 177).
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
        """Say how a socket is watched. Raises KeyError where it is not, also of a connection that has none any more."""
        try:
            return super().get_key(fileobj)
        except ValueError:
            raise KeyError(fileobj) from None

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch a socket no longer, unless it is closed and forgotten already."""
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
    """Say what a user has no right to. The library may name it, or write down a whole answer."""
    kind = type(error).__name__.partition("Authorization")[0].lower()
    name = error.args[0] if error.args else ""
    if isinstance(name, set | frozenset):
        name = " and ".join(sorted(name))
    return f"the {kind}" if not isinstance(name, str) or len(name.split()) != 1 else f"{kind} {name}"


def connection(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the options that every client is made with. Raises UsageError for a file that can't be used."""
    secure = {}
    if settings.kafka_security.protocol is not Protocol.PLAINTEXT:
        from brewctl.delivery.broker.kafka_python import secured  # noqa: PLC0415 - it changes the library

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
    """Raise UsageError where a certificate or a password of these settings can't be read from its file."""
    connection(settings, name="")


def library() -> str:
    """Name the client that is installed, with its version."""
    name, *_ = metadata.packages_distributions()["kafka"]
    return f"{name} {metadata.version(name)}"


def require_headers(client: Any) -> None:
    """Refuse a client that guessed its broker's version wrong, and would speak that protocol for ever.

    Asked through a faulty network, it may take a broker that answers late for one from before headers.
    """
    if client.config["api_version"] < _HEADERS_SINCE:
        client.close()
        raise errors.UnrecognizedBrokerVersion


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn the Kafka client's errors into the user's."""
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
