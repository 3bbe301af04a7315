"""A member of a consumer group on kafka-python-ng, with waits that end."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition, errors
from kafka.client_async import KafkaClient
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.structs import OffsetAndMetadata

from brewctl.config import Settings
from brewctl.delivery.broker import failure_reasons
from brewctl.delivery.broker.kafka_python.committable import Passed
from brewctl.delivery.broker.kafka_python.connection_settings import (
    FORBIDDEN,
    connection,
    explained,
    require_headers,
    words,
)
from brewctl.delivery.broker.kafka_python.heartbeats import Coordinator
from brewctl.delivery.broker.kafka_python.polling import PollingConsumer
from brewctl.delivery.broker.outcomes import UnavailableError
from brewctl.delivery.broker.overtaken import Overtaken, Told
from brewctl.delivery.broker.record import Record
from brewctl.errors import BrewError
from brewctl.lifecycle import wake_at
from brewctl.probes import heartbeat

# Errors that a retry can't fix, such as a group with another balancing protocol, which this member can't join.
_FATAL = (
    errors.InconsistentGroupProtocolError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.AuthenticationFailedError,
    errors.UnsupportedCodecError,
)
_SLICE_MS = 100  # of waits that a stop does not interrupt: for the answer to one request, and all after a stop
_STAY_S = 0.05


class Member:
    """One member of a group, as `membership.Consumer` describes it."""

    idle_poll_s = 1.0  # long, because a stop interrupts a poll at once

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
        limits = settings.limits
        self._group = group
        self._settings = settings
        self._listener = _Listener(on_assigned, on_revoked)
        self._tell_overtaken = on_overtaken
        with explained(settings):
            self._consumer = PollingConsumer(
                stop,
                on_overtaken=self._overtaken,
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                session_timeout_ms=int(limits.session_s * 1000),
                heartbeat_interval_ms=int(limits.heartbeat_s * 1000),
                max_poll_records=limits.consume_records,
                max_poll_interval_ms=int(limits.poll_interval_s * 1000),
                max_partition_fetch_bytes=limits.consume_partition_bytes,
                partition_assignment_strategy=[RoundRobinPartitionAssignor],
                coordinator=Coordinator,
                kafka_client=lambda **options: _Client(stop, limits.kafka_leave_s, **options),
                **connection(settings, name=node),
            )
            require_headers(self._consumer)
            # One lock instead of two: this thread and the heartbeat thread take the library's two locks in opposite
            # orders, so that they can deadlock when a broker goes away.
            self._consumer._coordinator._lock = threading.Condition(self._consumer._client._lock)  # noqa: SLF001
            self._consumer.subscribe([settings.topic], listener=self._listener)
            # Read the topic's metadata before joining. Without them the first assignment is empty, and a second
            # rebalance follows.
            self._consumer.partitions_for_topic(settings.topic)
        self._passed = Passed(self._consumer)
        self._commit_every_s = limits.offset_commit_s
        self.committed_at = -math.inf  # by time.monotonic(): when Kafka was last asked to commit

    def poll(self, *, timeout_s: float) -> list[Record]:
        """Read the next records."""
        with self._explained():
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
            self._passed.hand_out(batches, assignment=self._listener.assignments)
            pending = not batches and time.monotonic() >= self.committed_at + self._commit_every_s
            if pending and (offsets := self._passed.uncommitted()):
                self._commit(offsets)  # if Kafka refuses them, a later poll tries again
        return [record for batch in batches.values() for record in batch]

    @property
    def silent(self) -> bool:
        """Whether Kafka has answered no heartbeat for a session timeout."""
        return bool(self._consumer._coordinator.heartbeat.session_timeout_expired())  # noqa: SLF001

    @property
    def assignments(self) -> int:
        """How many assignments of partitions there were."""
        return self._listener.assignments

    @property
    def behind(self) -> bool:
        """Whether records wait for this member's next poll: in memory, or at the brokers when they last answered.

        Records that were written since a broker's last answer don't count, nor records after an open transaction.
        """
        return self._consumer.behind

    def keep_alive(self) -> None:
        """Poll without reading."""
        with self._explained():
            self._consumer.pause(*self._consumer.assignment())
            read = self._consumer.poll(timeout_ms=0)
            for place in self._consumer.assignment():
                # A partition that a rebalance has just brought is not paused, and may have been read: it goes back to
                # its first record. For a paused one the client drops the records that it holds and would go on after
                # their whole batch, so its position is set.
                offset = read[place][0].offset if place in read else self._consumer.position(place)
                self._consumer.seek(place, offset)
            self._consumer.resume(*self._consumer.assignment())

    def stay_while_leaving(self) -> None:
        """Wait a moment, in which heartbeats are sent."""
        # The client calls `on_revoked` while it holds the lock that the heartbeat thread needs: the wait releases it.
        lock = self._consumer._coordinator._lock  # noqa: SLF001
        with lock:
            lock.wait(_STAY_S)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _FATAL as error:
            if isinstance(error, errors.InconsistentGroupProtocolError):
                raise failure_reasons.other_protocol(self._group) from error
            raise BrewError(f"kafka refused consumer group {self._group}: {words(error)}") from error
        except FORBIDDEN as error:
            raise self._forbidden(error) from error
        except Exception as error:  # such as a race inside the client: a new member starts without it
            raise UnavailableError(words(error)) from error

    def _forbidden(self, error: Exception) -> BrewError:
        of_group = isinstance(error, errors.GroupAuthorizationFailedError)
        what = f"group {self._group}" if of_group else f"topic {self._settings.topic}"
        return failure_reasons.forbidden(self._settings, f"READ {what}")

    def commit(self, ends: Mapping[tuple[str, int], int]) -> str:
        """Commit offsets. Return why Kafka refused them, else ""."""
        return self._commit({TopicPartition(*place): OffsetAndMetadata(end, "") for place, end in ends.items()})

    def _commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> str:
        try:
            self._consumer.commit(offsets)
        except (errors.KafkaError, UnavailableError) as error:
            return words(error)
        finally:
            self.committed_at = time.monotonic()
        self._passed.take_back(offsets)
        return ""

    def _overtaken(self, found: Collection[Overtaken]) -> None:
        """Report partitions in which reading begins after removed records. Called in a poll, before they are read."""
        begins = [each for each in found if each.wanted is None]
        topic = self._settings.topic
        if begins:
            every = [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic) or ()]
            known = self._consumer._coordinator.fetch_committed_offsets(every)  # noqa: SLF001 - the public method takes one partition
            found = [replace(each, new=not known) if each.wanted is None else each for each in found]
        self._tell_overtaken(list(found))
        if begins:  # committed at once, so that the next owner of the partition does not report the same loss again
            self._commit({TopicPartition(topic, each.partition): OffsetAndMetadata(each.first, "") for each in begins})

    def close(self) -> None:
        """Leave the group, so that other members get its partitions at once."""
        try:
            self._consumer.close(autocommit=False)
        except UnavailableError:
            self._consumer._client.close()  # noqa: SLF001 - the connections, which the consumer did not get to


class _Client(KafkaClient):  # type: ignore[misc]
    """Ends the waits of the thread that made it, `leave_s` seconds after a stop.

    While a broker is away, the library joins, commits and leaves the group in endless loops. Each loop calls `poll`.
    """

    def __init__(self, stop: threading.Event, leave_s: float, **options: Any) -> None:
        self._stop = stop
        self._leave_s = leave_s
        self._give_up_at: float | None = None
        self._owner = threading.current_thread()
        self._wakes = False
        super().__init__(**options)
        wake_at(stop, self)
        self._wakes = True

    def poll(self, timeout_ms: float | None = None, future: Any = None) -> list[object]:
        """Exchange requests and responses, as the library's does. Raises UnavailableError `leave_s` after a stop."""
        if threading.current_thread() is not self._owner:
            return list(super().poll(timeout_ms, future))
        heartbeat.beat()  # the library's loops count as moving: they end when a broker is back
        if future is None:
            self._check()
            sliced = timeout_ms is None or not self._wakes
            return list(super().poll(_SLICE_MS if sliced else timeout_ms))
        responses = list(super().poll(0))
        while not future.is_done:
            heartbeat.beat()
            self._check()
            responses += super().poll(_SLICE_MS)
        return responses

    def wakeup(self) -> None:
        """End the wait of a poll, unless the client is closed."""
        if not self._closed:
            super().wakeup()

    def _poll(self, timeout: float) -> None:
        # The client's lock is held: from here on the heartbeat thread can't take away the wake-up of a stop.
        super()._poll(min(timeout, _SLICE_MS / 1000) if self._stop.is_set() else timeout)

    def _register_send_sockets(self) -> None:
        """Send at once what the sockets take. The library would first ask each socket, which costs twice as much."""
        left = {conn for conn in self._sending if not conn.send_pending_requests_v2()}
        self._sending.clear()
        self._sending.update(left)
        super()._register_send_sockets()

    def _check(self) -> None:
        if not self._stop.is_set():
            return
        self._give_up_at = self._give_up_at or time.monotonic() + self._leave_s
        if time.monotonic() > self._give_up_at:
            raise UnavailableError("no answer before the stop")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Counts assignments and passes them on. The client swallows exceptions that are raised here."""

    def __init__(self, on_assigned: Callable[[list[int]], None], on_revoked: Callable[[], None]) -> None:
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self.assignments = 0

    def on_partitions_revoked(self, revoked: object) -> None:  # noqa: ARG002 - the client's signature
        self._on_revoked()

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self.assignments += 1
        self._on_assigned(sorted(place.partition for place in assigned))
