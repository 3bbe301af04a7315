"""The library's administration client, with waits that end and with requests that the library lacks."""

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
_NO_GENERATION = -1  # of a commit from outside of the group
_KEPT_AS_LONG_AS_THE_BROKER_SAYS = -1


class AdminClient(KafkaAdminClient):  # type: ignore[misc]
    """Adds requests to the library's client. A broker that is not connected in kafka_connect_s: NodeNotReadyError."""

    def list_offsets(self, topic: str, leaders: Mapping[int, int], moments: Sequence[int]) -> list[dict[int, int]]:
        """Return, for each moment, each partition's first offset from then on; -1 if all its records are older.

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
        """Return the controller's clock, in seconds since the epoch; None if this Kafka can't tell it."""
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
        """Set a group's committed offsets from outside. Raises UnknownMemberIdError if the group has members."""
        (coordinator,) = self._find_coordinator_ids([group]).values()
        places = [(partition, offset, "") for partition, offset in offsets.items()]
        request = OffsetCommitRequest[2](group, _NO_GENERATION, "", _KEPT_AS_LONG_AS_THE_BROKER_SAYS, [(topic, places)])
        future = self._send_request_to_node(coordinator, request)
        self._wait_for_futures([future])
        for partition, code in _partitions(future.value):
            _check(code, topic, partition)

    def delete_offsets(self, group: str, partitions: Mapping[str, Sequence[int]]) -> None:
        """Delete a group's committed offsets of these partitions only. A missing offset is no error.

        `partitions`: topic → partitions. Raises GroupSubscribedToTopicError if members read one of the topics.
        """
        (coordinator,) = self._find_coordinator_ids([group]).values()
        future = self._send_request_to_node(coordinator, forgetting.question(group, partitions))
        self._wait_for_futures([future])
        forgetting.check(future.value)

    def change_topic(self, topic: str, wanted: Mapping[str, str | None]) -> None:
        """Change these settings of a topic only; None removes one. Raises KafkaError."""
        future = self._send_request_to_node(None, topic_settings.change(topic, wanted))
        self._wait_for_futures([future])
        topic_settings.check(future.value)

    def _refresh_controller_id(self) -> None:
        """Find the broker that takes the controller's requests.

        Kafka names any broker that it counts as alive. A killed broker counts as alive for some seconds: ask again.
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
        """Send a request once its broker is connected. Raises NodeNotReadyError after kafka_connect_s seconds.

        The library's own method waits without end, and fails on an unknown broker or without any broker.
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
