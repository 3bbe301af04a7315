"""The speed of the Kafka library alone: the bench compares publisher and consumer with it."""

from collections.abc import Sequence

from brewctl.config import Settings
from brewctl.delivery.broker import clients
from brewctl.delivery.broker.record import Record


def produce(settings: Settings, records: Sequence[Record], *, batch: int = 500) -> float:
    """Send records with acks=all, as the publisher does; return how many a second.

    After each `batch` of records it waits for the acknowledgements. Raises UnreachableError, BrewError.
    """
    return clients.chosen(settings).produce(settings, records, batch=batch)


def fetch(settings: Settings, count: int) -> float:
    """Read `count` records from the topic's beginning; return how many a second.

    The first poll with records is not counted. Raises UnreachableError if the records do not all come.
    """
    return clients.chosen(settings).fetch(settings, count)
