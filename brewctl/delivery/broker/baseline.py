"""The client library with nothing around it: the floors that the bench measures publisher and consumer against."""

from collections.abc import Sequence

from brewctl.config import Settings
from brewctl.delivery.broker import clients
from brewctl.delivery.broker.record import Record


def produce(settings: Settings, records: Sequence[Record], *, batch: int = 500) -> float:
    """Send records as the publisher has to, with acks from all; return how many a second.

    Each `batch` is awaited before the next. Raises UnreachableError, BrewError.
    """
    return clients.chosen(settings).produce(settings, records, batch=batch)


def fetch(settings: Settings, count: int) -> float:
    """Read so many records of the topic from its beginning, and return how many a second.

    The first poll that has any is not counted. Raises UnreachableError where no more come.
    """
    return clients.chosen(settings).fetch(settings, count)
