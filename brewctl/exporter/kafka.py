"""Questions to Kafka: the lag of each downstream's group, in records and in seconds."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from brewctl.config import Settings
from brewctl.delivery.broker import Admin, Reader, open_admin, open_reader
from brewctl.exporter.families import LAG_RECORDS, LAG_SECONDS, MEMBERS, OVERTAKEN, Sample
from brewctl.exporter.questions import Question
from brewctl.overview import consumer_groups
from brewctl.overview.consumer_groups import GroupView

SERVER = "kafka"
# Enough for one record of each partition. Kafka returns the record's whole batch even if that is larger.
_FETCH_BYTES = 16 * 1024
READ_S = 3.0  # a read that brings no record for so long has failed
Place = tuple[int, int]  # partition and offset


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Sequence[Question]]:
    """Connect, and yield the questions. Raises UnreachableError or BrewError, in the block too."""
    limits = replace(settings.limits, consume_partition_bytes=_FETCH_BYTES, kafka_request_s=READ_S)
    with open_admin(settings) as admin, open_reader(replace(settings, limits=limits)) as reader:
        groups = _Groups(settings, admin)
        ages = Ages(reader, settings.topic)

        def ping() -> None:
            admin.brokers()

        yield [
            # The other questions may answer from their last answer: only the ping shows that Kafka is up.
            Question(SERVER, "ping", ping, always=True),
            Question(SERVER, "group_lag", groups.look),
            Question(SERVER, "group_lag_seconds", lambda: ages.look(groups.views)),
        ]


class _Groups:
    """The downstreams' groups at the last look; None while they are unknown."""

    def __init__(self, settings: Settings, admin: Admin) -> None:
        self._settings = settings
        self._admin = admin
        self.views: Sequence[GroupView] | None = None

    def look(self) -> Sequence[Sample]:
        self.views = None
        self.views = consumer_groups.groups(self._admin, self._settings)
        return [
            *(Sample(MEMBERS, len(view.members), (view.name,)) for view in self.views),
            *(Sample(OVERTAKEN, sum(part.overtaken for part in view.partitions), (view.name,)) for view in self.views),
            *(
                Sample(LAG_RECORDS, part.lag, (view.name, str(part.partition)))
                for view in self.views
                for part in view.partitions
            ),
        ]


class Ages:
    """The age of the next record that each group will read: this machine's clock minus the record's timestamp.

    Such a record is read once, and remembered until the group has moved past it.
    """

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader = reader
        self._topic = topic
        self._written_s: dict[Place, float] = {}

    def look(self, views: Sequence[GroupView] | None) -> Sequence[Sample] | None:
        """Return the age of each group's oldest unread record; None where the groups' offsets are unknown."""
        if views is None:
            return None
        next_of = {
            view.name: [(part.partition, part.position) for part in view.partitions if part.lag] for view in views
        }
        wanted = {place for places in next_of.values() for place in places}
        self._written_s = {place: at for place, at in self._written_s.items() if place in wanted}
        for batch in _apart(wanted - self._written_s.keys()):
            self._read(batch)
        now = time.time()
        samples = []
        for name, places in next_of.items():
            # An offset may hold no record, such as a transaction marker: nothing waits there.
            written = [self._written_s[place] for place in places if place in self._written_s]
            samples.append(Sample(LAG_SECONDS, max(0.0, now - min(written)) if written else 0.0, (name,)))
        return samples

    def _read(self, places: Mapping[int, int]) -> None:
        ranges = {partition: (offset, offset + 1) for partition, offset in places.items()}
        for records in self._reader.read(self._topic, ranges):
            for record in records:
                self._written_s[record.partition, record.offset] = record.timestamp_ms / 1000


def _apart(places: set[Place]) -> Iterator[dict[int, int]]:
    """Split places into parts with one place for each partition: a read takes one range of each."""
    left = sorted(places)
    while left:
        part = dict(reversed(left))
        yield part
        left = [(partition, offset) for partition, offset in left if part[partition] != offset]
