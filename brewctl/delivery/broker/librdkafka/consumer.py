"""A member of a consumer group on librdkafka, whose own threads send heartbeats and fetch records ahead."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition
from confluent_kafka import Consumer as Library

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery.broker.librdkafka import committed_offsets
from brewctl.delivery.broker.librdkafka.connection_settings import (
    connection,
    error_of,
    explained,
    require_answer,
    within,
    words,
)
from brewctl.delivery.broker.librdkafka.fetching import fetching
from brewctl.delivery.broker.librdkafka.patience import Patience
from brewctl.delivery.broker.librdkafka.polling import Polling
from brewctl.delivery.broker.librdkafka.progress import MemberProgress
from brewctl.delivery.broker.outcomes import UnavailableError
from brewctl.delivery.broker.overtaken import Overtaken, Told
from brewctl.delivery.broker.record import Record

logger = log.get(__name__)

_REVOKED, _LOST = "revoked", "lost"
_STAY_S = 0.05


class Member:
    """One member of a group, as `membership.Consumer` describes it."""

    idle_poll_s = 0.2  # short, because a stop can't interrupt a poll of the library

    def __init__(
        self,
        settings: Settings,
        stop: threading.Event,
        *,
        group: str,
        node: str,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[], None],
        on_overtaken: Told,
    ) -> None:
        self._limits = limits = settings.limits
        self._patience = Patience(stop, leave_s=limits.kafka_leave_s)
        self._group = group
        self._topic = settings.topic
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._on_overtaken = on_overtaken
        self._beginning: set[int] = set()  # partitions without a committed offset of which no record was read yet
        self._assignments = 0
        self._rebalances = 0  # assignments and revocations
        self._progress = MemberProgress()
        self._polling = Polling(settings, group=group, node=node)
        self._kept: list[Record] = []  # records that `keep_alive` received: the next poll returns them
        self._paused = False
        self.committed_at = -math.inf
        self._closing = False
        self._leaving = ""  # _REVOKED or _LOST while the library's callback takes partitions away
        with explained(settings):
            self._library = Library(
                {
                    "group.id": group,
                    "session.timeout.ms": int(limits.session_s * 1000),
                    "heartbeat.interval.ms": int(limits.heartbeat_s * 1000),
                    "max.poll.interval.ms": int(max(limits.poll_interval_s, limits.session_s) * 1000),
                    "partition.assignment.strategy": "roundrobin",
                    "error_cb": self._polling.on_connection_error,
                    "on_commit": committed_offsets.log_refusal,
                    **fetching(settings),
                    **connection(settings, name=node),
                }
            )
            require_answer(self._library, settings)
            self._library.subscribe(
                [settings.topic],
                on_assign=self._assigned,
                on_revoke=lambda *_: self._leave(_REVOKED),
                on_lost=lambda *_: self._leave(_LOST),
            )

    silent = False  # not needed here: when brokers are away, a poll raises or the partitions are lost

    @property
    def assignments(self) -> int:
        """How many assignments of partitions there were."""
        return self._assignments

    @property
    def behind(self) -> bool:
        """Whether records wait for the next poll."""
        return bool(self._kept) or self._progress.is_behind(self._end_of)

    def _end_of(self, partition: int) -> int:
        """Return the end of a partition from the last answer of a broker; negative before the first answer."""
        found: Any = self._library.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        return int(found[1])

    def poll(self, *, timeout_s: float) -> list[Record]:
        """Read the next records."""
        with self._polling.explained():
            if self._paused:
                self._paused = False
                self._library.resume(self._places())
            if self._kept:
                records, self._kept = self._kept, []
                return records
            records = self._read(timeout_s)
        self._progress.hand_out(records)
        pending = not records and time.monotonic() >= self.committed_at + self._limits.offset_commit_s
        if pending and (ends := self._progress.uncommitted()):
            self.commit({(self._topic, each): end for each, end in ends.items()})  # refused: a later poll tries again
        return records

    def keep_alive(self) -> None:
        """Poll without reading."""
        with self._polling.explained():
            if not self._paused:
                self._paused = True
                self._library.pause(self._places())
            records = self._read(0)
        self._progress.hand_out(records)
        self._kept += records

    def stay_while_leaving(self) -> None:
        """Wait a moment. The library's own thread sends heartbeats meanwhile."""
        time.sleep(_STAY_S)

    def commit(self, ends: Mapping[tuple[str, int], int]) -> str:
        """Commit offsets. Return why Kafka refused them, else ""."""
        offsets = [TopicPartition(topic, partition, end) for (topic, partition), end in ends.items()]
        if self._leaving == _LOST:
            return "the partitions belong to another member by now"
        if self._polling.failure:
            return str(self._polling.failure)
        try:
            refused = committed_offsets.commit(
                self._library, offsets, self._patience, within_callback=bool(self._leaving)
            )
        except KafkaException as raised:
            return words(error_of(raised))
        except TimeoutError:
            # The library is blocked until that answer comes: this member can't be used any more.
            self._polling.failure = UnavailableError("no answer before the stop")
            return str(self._polling.failure)
        finally:
            self.committed_at = time.monotonic()
        if not refused:
            self._progress.commit({partition: end for (_, partition), end in ends.items()})
        return refused

    def close(self) -> None:
        """Leave the group, so that other members get its partitions at once."""
        self._closing = True
        self._polling.close()
        late = time.monotonic() + self._limits.kafka_request_s
        try:
            within(self._library.close, lambda done: self._patience.wait(done, until=late))
        except (TimeoutError, KafkaException):
            logger.debug("left_behind", group=self._group, reason="the library did not leave the group in time")

    def _read(self, timeout_s: float) -> list[Record]:
        """Return fetched records, or wait for some. Rebalances happen within."""
        self._polling.renew_password(self._library)
        until = time.monotonic() + timeout_s
        records = self._take(0)
        while not records and (left_s := until - time.monotonic()) > 0:
            records = self._take(left_s)
        return records

    def _take(self, wait_s: float) -> list[Record]:
        """Return at most consume_records fetched records; if none is fetched, the first that arrive in `wait_s`."""
        messages: list[Any] = []
        if wait_s:
            # `poll` waits for one message. `consume` would wait until it has as many as it was asked for.
            if (first := self._library.poll(wait_s)) is None:
                return []
            messages.append(first)  # it was fetched after any rebalance that happened in this wait
        before = self._rebalances
        records = self._polling.records(self._library, messages)
        if self._rebalances != before and (records or self._polling.reached):
            # These records and ends may be from before the rebalance. They are dropped: the library reads again from
            # where the new assignment begins. To go on at such an end would skip the records before it, and to commit
            # it would lose them.
            records = []
            self._polling.reached.clear()
            self._begin_again()
        if self._polling.failure:
            raise self._polling.failure
        if self._beginning:
            self._look_where_it_begins(records)
        self._note_ends()
        if self._polling.lost:
            self._progress.hand_out(records)
            self._find_again()
        return records

    def _note_ends(self) -> None:
        for partition, end in self._polling.reached.items():
            self._progress.reach(partition, end, high=self._end_of(partition))
        self._polling.reached.clear()

    def _assigned(self, _library: Library, places: Sequence[TopicPartition]) -> None:
        """Start reading each partition at its committed offset, or at its first record if it has none."""
        self._assignments += 1
        self._rebalances += 1
        partitions = sorted(place.partition for place in places)
        committed = self._committed(places) if partitions else {}
        starts = {partition: committed.get(partition, OFFSET_BEGINNING) for partition in partitions}
        self._forget()
        self._beginning = starts.keys() - committed.keys()
        self._progress.begin(starts, committed)
        self._begin_again()
        self._on_assigned(partitions)

    def _begin_again(self) -> None:
        """Tell the library the next offset of each partition. It drops the records that it has fetched ahead."""
        if places := self._places(with_offsets=True):
            self._library.assign(places)
            # A partition that left while it was paused comes back paused, and `poll` resumes only those it has then.
            (self._library.pause if self._paused else self._library.resume)(places)

    def _committed(self, places: Sequence[TopicPartition]) -> dict[int, int]:
        return committed_offsets.read(self._library, places, self._limits, self._patience)

    def _leave(self, how: str) -> None:
        """Let the caller finish its batch before the partitions leave. The library unassigns them afterwards."""
        self._rebalances += 1
        self._leaving = how
        try:
            if not self._closing:
                self._on_revoked()
        finally:
            self._leaving = ""
        self._forget()
        self._progress.begin({}, {})

    def _forget(self) -> None:
        self._kept.clear()
        self._polling.lost.clear()
        self._beginning = set()

    def _find_again(self) -> None:
        """Go on at the first record of each partition whose next record was removed, and report the loss."""
        found = []
        for partition, wanted in self._polling.lost.items():
            first = self._first_of(partition)
            self._progress.put_back(partition, first)
            found.append(Overtaken(partition, wanted, first))
        self._on_overtaken(found)
        self._polling.lost.clear()
        self._begin_again()

    def _look_where_it_begins(self, records: Sequence[Record]) -> None:
        """Report partitions without a committed offset whose first records were removed before the group read them.

        The first record read of a partition, or its end, shows where it begins. It may also follow transaction markers
        or aborted records, so the broker is asked for the partition's first offset.
        """
        begins = dict(self._polling.reached)
        for record in reversed(records):
            begins[record.partition] = record.offset
        read = {each: begins[each] for each in self._beginning & begins.keys()}
        # All partitions at once: the first offset that is committed here makes a new group look like an old one.
        suspected = self._beginning if any(read.values()) else ()
        found = [Overtaken(each, None, first) for each in suspected if (first := self._first_of(each))]
        if found:
            topic = self._library.list_topics(self._topic, timeout=self._limits.kafka_metadata_s).topics[self._topic]
            new = not self._committed([TopicPartition(self._topic, number) for number in topic.partitions])
            self._on_overtaken([replace(each, new=new) for each in found])
            # Committed at once, so that the next owner of the partition does not report the same loss again.
            self.commit({(self._topic, each.partition): each.first for each in found})
        self._beginning -= read.keys() | {each.partition for each in found}

    def _first_of(self, partition: int) -> int:
        """Ask a broker for the first offset of a partition."""
        place = TopicPartition(self._topic, partition)
        found: Any = self._library.get_watermark_offsets(place, timeout=self._limits.kafka_metadata_s)
        if found is None:  # no answer in time
            raise UnavailableError(f"kafka did not tell the first offset of partition {partition}")
        return int(found[0])

    def _places(self, *, with_offsets: bool = False) -> list[TopicPartition]:
        return [
            TopicPartition(self._topic, partition, at) if with_offsets else TopicPartition(self._topic, partition)
            for partition, at in self._progress.next.items()
        ]
