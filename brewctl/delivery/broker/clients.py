"""The two client libraries: BREW_KAFKA_CLIENT chooses one, and only that one is imported.

Each has a package here, with the same names. Administration always uses kafka-python-ng.
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
    """A library's producer, as `sending.Producer` uses it."""

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has. Raises UnsentError if it does not exist, UnavailableError."""

    def put(self, record: Record, partitions: int, deadline: float) -> Any:
        """Put a record into the next batch of its partition.

        Return its outcome if that is known at once, else a handle for `outcomes`. `partitions` is the topic's number:
        `partitions.partition_for` chooses by the key; without a key any partition. Raises UnavailableError if the
        buffer is full until `deadline`.
        """

    def outcomes(self, sent: Sequence[Any], records: Sequence[Record], deadline: float) -> list[Outcome]:
        """Send the records that were put. Return each outcome: UnavailableError if it is unknown at the deadline."""

    def close(self) -> None:
        """Close it. No record may be unacknowledged."""

    def abandon(self) -> None:
        """Close it, and drop the records that are not acknowledged."""


class Member(Protocol):
    """A library's member of a consumer group, as `membership.Consumer` describes it."""

    committed_at: float
    idle_poll_s: float

    @property
    def behind(self) -> bool:
        """Whether records wait for the next poll."""

    @property
    def silent(self) -> bool:
        """Whether Kafka has answered no heartbeat for a session timeout."""

    @property
    def assignments(self) -> int:
        """How many assignments of partitions there were."""

    def poll(self, *, timeout_s: float) -> list[Record]:
        """Read the next records."""

    def keep_alive(self) -> None:
        """Poll without reading."""

    def stay_while_leaving(self) -> None:
        """Wait a moment within `on_revoked`, while heartbeats go on."""

    def commit(self, ends: Mapping[tuple[str, int], int]) -> str:
        """Commit, for each topic and partition, the offset of the next record to read. Return why not, else ""."""

    def close(self) -> None:
        """Leave the group."""


class Topics(Protocol):
    """A library's reader of whole topics, as `reading.Reader` describes it."""

    def bounds(self, topic: str, *, since_ms: int | None = None) -> dict[int, tuple[int, int]]:
        """Return each partition's first offset and the offset that its next record will get."""

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        """Yield the records in these ranges of offsets."""

    def close(self) -> None:
        """Close the connections."""


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
    """The package of a library."""

    Wire: _NewWire
    Member: _NewMember
    Topics: Callable[[Settings], Topics]
    library: Callable[[], str]
    explained: Callable[[Settings], AbstractContextManager[None]]
    fetch: Callable[[Settings, int], float]

    def produce(self, settings: Settings, records: Sequence[Record], *, batch: int) -> float:
        """Send records with the library alone; return how many a second."""


def chosen(settings: Settings) -> Client:
    """Return the package of the library that these settings choose. Raises BrewError if it can't be imported."""
    try:
        return cast("Client", import_module(_PACKAGES[settings.kafka_client]))
    except ImportError as error:
        hint = "install it again, or unset BREW_KAFKA_CLIENT"
        raise BrewError(f"kafka client {settings.kafka_client} does not load: {error}", hint=hint) from error


def library(settings: Settings) -> str:
    """Return the chosen library's name and version."""
    return chosen(settings).library()
