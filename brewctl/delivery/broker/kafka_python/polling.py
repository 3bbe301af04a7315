"""The library's consumer, whose poll returns with the first records, and at a stop."""

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from kafka import KafkaConsumer

from brewctl.delivery.broker.overtaken import Overtaken


class PollingConsumer(KafkaConsumer):  # type: ignore[misc]
    """A consumer whose poll returns as soon as it has records, or when `stop` is set."""

    def __init__(
        self, stop: threading.Event, *, on_overtaken: Callable[[Collection[Overtaken]], None], **options: Any
    ) -> None:
        self._stop = stop
        self._on_overtaken = on_overtaken
        super().__init__(**options)

    @property
    def behind(self) -> bool:
        """Whether records wait for the next poll: in memory, or at the brokers when they last answered."""
        fetcher = self._fetcher
        if fetcher._completed_fetches or fetcher._next_partition_records:  # noqa: SLF001 - not public
            return True
        stable = fetcher.stable
        for place, state in self._subscription.assignment.items():
            if state.has_valid_position and state.position < stable.get(place, 0):
                return True
        return False

    def poll(self, timeout_ms: float = 0, max_records: int | None = None, update_offsets: bool = True) -> Any:
        """Read records as the library's poll does, until the time is up or `stop` is set."""
        until = time.monotonic() + timeout_ms / 1000
        left_ms = timeout_ms
        while True:
            records = self._poll_once(left_ms, max_records or self.config["max_poll_records"], update_offsets)
            left_ms = (until - time.monotonic()) * 1000
            if records or left_ms <= 0 or self._stop.is_set():
                return records

    def _update_fetch_positions(self, partitions: Any) -> None:
        """Look up where reading begins, and report partitions where that is after removed records."""
        super()._update_fetch_positions(partitions)
        if found := self._fetcher.overtaken:
            self._fetcher.overtaken = []
            self._on_overtaken(found)

    def _poll_once(self, timeout_ms: float, max_records: int, update_offsets: bool = True) -> Any:
        """Do what the library's method does, with two differences.

        The library polls its sockets once more after it has sent fetch requests and before it waits. A response that
        this extra poll finds is not handed out before the wait for the next response is over. So it is left out.

        After a poll with records the library sends the next fetch at once. Here that happens only if more records are
        known to wait. Otherwise the caller pauses, and a broker would answer with the first new record alone: a batch
        of one record, and the rest in the next batch.
        """
        self._coordinator.poll()
        if not self._subscription.has_all_fetch_positions():
            self._update_fetch_positions(self._subscription.missing_fetch_positions())
        records, partial = self._fetcher.fetched_records(max_records, update_offsets=update_offsets)
        if records:
            if not partial and self.behind and self._fetcher.send_fetches():
                self._client.poll(timeout_ms=0)
            return records
        self._fetcher.send_fetches()
        self._client.poll(timeout_ms=min(timeout_ms, self._coordinator.time_to_next_poll() * 1000))
        if self._coordinator.need_rejoin():
            return {}
        records, _ = self._fetcher.fetched_records(max_records, update_offsets=update_offsets)
        return records
