"""The library's administration client with what it lacks: waits that end, offsets asked and set."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, errors
from kafka.protocol.commit import OffsetCommitRequest
from kafka.protocol.offset import OffsetRequest, OffsetResetStrategy

from brewctl.delivery.broker.kafka_python import clock, forgetting, topic_settings

EARLIEST: int = OffsetResetStrategy.EARLIEST
LATEST: int = OffsetResetStrategy.LATEST
_POLL_MS = 50
_ANY_REPLICA = -1
_NO_GENERATION = -1  # what commits is no member
_KEPT_AS_LONG_AS_THE_BROKER_SAYS = -1


class AdminClient(KafkaAdminClient):  # type: ignore[misc]
    """Connects to a broker within kafka_connect_s, or raises NodeNotReadyError."""

    def list_offsets(self, topic: str, leaders: Mapping[int, int], moments: Sequence[int]) -> list[dict[int, int]]:
        """Return, for each moment, the first offset from then on of each partition; -1 where no record is that young.

        A moment is a time in milliseconds since the epoch, or EARLIEST, or LATEST. `leaders`: partition → broker.
        One round trip, to all leaders at once. Raises KafkaError.
        """
        led = defaultdict(list)
        for partition, leader in leaders.items():
            led[leader].append(partition)
        futures = [
            [
                self._send_request_to_node(
                    leader,
                    OffsetRequest[1](_ANY_REPLICA, [(topic, [(partition, moment) for partition in partitions])]),
                )
                for leader, partitions in led.items()
            ]
            for moment in moments
        ]
        self._wait_for_futures([future for each in futures for future in each])
        found: list[dict[int, int]] = []
        for each in futures:
            found.append({})
            for future in each:
                for partition, code, _timestamp, offset in _partitions(future.value):
                    _check(code, topic, partition)
                    found[-1][partition] = offset
        return found

    def controller_clock(self) -> float | None:
        """Return the time of the controller, in seconds since the epoch; None where this Kafka does not tell it."""
        _oldest, newest = (self._client.get_api_versions() or {}).get(clock.API_KEY, (0, -1))
        if newest < clock.API_VERSION:
            return None
        try:
            future = self._send_request_to_node(None, clock.question())
            self._wait_for_futures([future])
        except errors.KafkaError:
            return None
        return clock.answer(future.value)

    def commit_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Set a group's committed offsets, as nobody's member. Raises UnknownMemberIdError where it has members."""
        (coordinator,) = self._find_coordinator_ids([group]).values()
        places = [(partition, offset, "") for partition, offset in offsets.items()]
        request = OffsetCommitRequest[2](group, _NO_GENERATION, "", _KEPT_AS_LONG_AS_THE_BROKER_SAYS, [(topic, places)])
        future = self._send_request_to_node(coordinator, request)
        self._wait_for_futures([future])
        for partition, code in _partitions(future.value):
            _check(code, topic, partition)

    def delete_offsets(self, group: str, partitions: Mapping[str, Sequence[int]]) -> None:
        """Delete a group's committed offsets of these partitions, by topic, and no others. Absent is fine.

        Raises GroupSubscribedToTopicError where it has members that read one of the topics.
        """
        (coordinator,) = self._find_coordinator_ids([group]).values()
        future = self._send_request_to_node(coordinator, forgetting.question(group, partitions))
        self._wait_for_futures([future])
        forgetting.check(future.value)

    def change_topic(self, topic: str, wanted: Mapping[str, str | None]) -> None:
        """Set these of a topic, and leave the others. Raises KafkaError."""
        future = self._send_request_to_node(None, topic_settings.change(topic, wanted))
        self._wait_for_futures([future])
        topic_settings.check(future.value)

    def _refresh_controller_id(self) -> None:
        """Find a broker for what is a controller's to do.

        Kafka names any that it believes alive, and for some seconds that may be one which was killed: ask again then.
        """
        deadline = time.monotonic() + self.config["api_version_auto_timeout_ms"] / 1000
        while True:
            try:
                super()._refresh_controller_id()
                return
            except errors.NodeNotReadyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_MS / 1000)

    def _send_request_to_node(self, node_id: int | None, request: Any, wakeup: bool = True) -> Any:
        """Send a request once its broker is connected.

        The library waits for that without end, and falls over a broker it has not heard of, or no broker at all.
        """
        deadline = time.monotonic() + self.config["api_version_auto_timeout_ms"] / 1000
        while True:
            broker = self._client.least_loaded_node() if node_id is None else node_id
            if self._client.cluster.broker_metadata(broker) is None:
                self._client.cluster.request_update()
            elif self._client.ready(broker):
                return self._client.send(broker, request, wakeup)
            if time.monotonic() > deadline:
                raise errors.NodeNotReadyError(broker)
            self._client.poll(timeout_ms=_POLL_MS)


def _partitions(response: Any) -> list[Any]:
    ((_topic, partitions),) = response.topics
    return list(partitions)


def _check(code: int, topic: str, partition: int) -> None:
    if code:
        raise errors.for_code(code)(f"{topic} {partition}")
