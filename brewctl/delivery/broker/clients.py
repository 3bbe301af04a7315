"""Which client library talks to Kafka: BREW_KAFKA_CLIENT says it, and only the one that is chosen is imported.

Each is a package here with the same names. Administration is kafka-python-ng's in either case.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol, cast

from brewctl.config import KafkaClient, Settings
from brewctl.delivery.broker.outcomes import Outcome
from brewctl.delivery.broker.overtaken import Told
from brewctl.delivery.broker.record import Record
from brewctl.errors import BrewError

_PACKAGES = {
    KafkaClient.KAFKA_PYTHON_NG: "brewctl.delivery.broker.kafka_python",
    KafkaClient.LIBRDKAFKA: "brewctl.delivery.broker.librdkafka",
}


class Wire(Protocol):
    """One client's sending, as `sending.Producer` needs it."""

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has. Raises UnsentError where there is no such topic, UnavailableError."""

    def put(self, record: Record, partitions: int, deadline: float) -> Any:
        """Put a record into the next batch; its outcome where that is known at once, else what `outcomes` wants.

        By `partitions.partition_for` of so many, without a key into any. Raises UnavailableError where there is no room
        until `deadline`.
        """

    def outcomes(self, sent: Sequence[Any], records: Sequence[Record], deadline: float) -> list[Outcome]:
        """Send what was put, and return the outcome of each record; UnavailableError for one that is late."""

    def close(self) -> None:
        """Close it, with nothing on its way."""

    def abandon(self) -> None:
        """Close it, and drop what is on its way."""


class Member(Protocol):
    """One client's member of a group, as `membership.Consumer` describes it."""

    committed_at: float
    idle_poll_s: float

    @property
    def behind(self) -> bool:
        """Say whether records wait for the next poll."""

    @property
    def silent(self) -> bool:
        """Say whether Kafka has answered no heartbeat for a session."""

    @property
    def assignments(self) -> int:
        """Say how often partitions were assigned."""

    def poll(self, *, timeout_s: float) -> list[Record]:
        """Read the next records."""

    def keep_alive(self) -> None:
        """Poll without reading."""

    def stay_while_leaving(self) -> None:
        """Wait a moment within `on_revoked`."""

    def commit(self, ends: Mapping[tuple[str, int], int]) -> str:
        """Commit, for each topic and partition, the offset that is read next."""

    def close(self) -> None:
        """Leave the group."""


class Topics(Protocol):
    """One client's reading of whole topics, as `reading.Reader` describes it."""

    def bounds(self, topic: str, *, since_ms: int | None = None) -> dict[int, tuple[int, int]]:
        """Return the first and the next offset of each partition."""

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield the records in these ranges."""

    def close(self) -> None:
        """Let the connections go."""


class _NewWire(Protocol):
    def __call__(self, settings: Settings, *, node: str, compressed: bool) -> Wire: ...


class _NewMember(Protocol):
    def __call__(
        self,
        settings: Settings,
        stop: threading.Event,
        *,
        group: str,
        node: str,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[], None],
        on_overtaken: Told,
    ) -> Member: ...


class Client(Protocol):
    """What the package of a client offers."""

    Wire: _NewWire
    Member: _NewMember
    Topics: Callable[[Settings], Topics]
    library: Callable[[], str]
    explained: Callable[[Settings], AbstractContextManager[None]]
    fetch: Callable[[Settings, int], float]

    def produce(self, settings: Settings, records: Sequence[Record], *, batch: int) -> float:
        """Send records by the library alone, and return how many a second."""


def chosen(settings: Settings) -> Client:
    """Return the client of these settings. Raises BrewError where its library does not load."""
    try:
        return cast("Client", import_module(_PACKAGES[settings.kafka_client]))
    except ImportError as error:
        hint = "install it again, or unset BREW_KAFKA_CLIENT"
        raise BrewError(f"kafka client {settings.kafka_client} does not load: {error}", hint=hint) from error


def library(settings: Settings) -> str:
    """Name the client library that runs, with its version."""
    return chosen(settings).library()
