"""What the three clients share: how they connect, the record, and Kafka's errors in the user's words."""

import contextlib
import selectors
from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple

from kafka import errors

from brewctl.config import Settings
from brewctl.delivery import advice
from brewctl.delivery.broker import advertised
from brewctl.delivery.events import Headers
from brewctl.errors import BrewError, UnreachableError

# A dead letter is the largest record of the topic (1 MiB by default) and the reasons for its death.
DEAD_LETTER_BYTES = 2 * 1024 * 1024
_HEADERS_SINCE = (0, 11)


class Record(NamedTuple):
    """A record to send, or one that was read (then with its partition and offset)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = -1
    offset: int = -1
    timestamp_ms: int = -1  # since the epoch; of a record to send, negative: by this machine's clock


class UnavailableError(Exception):
    """Kafka did not answer in time. Of a record: whether Kafka has it is unknown."""


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

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch a socket no longer, unless it is closed and forgotten already."""
        try:
            return super().unregister(fileobj)
        except ValueError:
            return selectors.SelectorKey(fileobj, -1, 0, None)


def connection(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the options that every client is made with."""
    return {
        "bootstrap_servers": list(settings.brokers),
        "client_id": name,
        "api_version_auto_timeout_ms": int(settings.limits.kafka_connect_s * 1000),
        "metadata_max_age_ms": int(settings.limits.kafka_metadata_age_s * 1000),
        "selector": Selector,
    }


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
        raise _unreachable(settings) from error
    except errors.InvalidReplicationFactorError as error:
        raise BrewError(f"kafka {where} has too few brokers for that replication factor") from error
    except errors.KafkaError as error:
        raise BrewError(f"kafka {where}: {words(error)}") from error


def _unreachable(settings: Settings) -> UnreachableError:
    """Say who does not answer: the configured addresses, or one that an answer sent us to."""
    where = ",".join(settings.brokers)
    answered, away = advertised.diagnose(settings)
    if not answered:
        return UnreachableError(f"kafka {where} does not answer", hint=advice.for_kafka(settings))
    if not away:
        return UnreachableError(f"kafka {where} answers, but not in time", hint="try again, or run `brewctl doctor`")
    return UnreachableError(
        f"kafka {','.join(answered)} answers, but {'; '.join(map(str, away))}", hint=advertised.Unreached.mend
    )


def reason(settings: Settings, error: Exception) -> str:
    """Say why Kafka acknowledged nothing: a broker that is out of reach, else what the client says."""
    _, away = advertised.diagnose(settings)
    return "; ".join(map(str, away)) or str(error).strip()


def absent(*topics: str) -> BrewError:
    """Return the error of who needs topics that are not there."""
    return BrewError(f"topic {' and '.join(topics)} missing in kafka", hint="run `brewctl topic create`")


def words(error: Exception | None) -> str:
    """Write an error of the client in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__ if isinstance(error, Exception) else getattr(error, "__name__", "")
    return (text if name in text else f"{name} {text}".strip())[:300]
