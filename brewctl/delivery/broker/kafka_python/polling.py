"""The client library's consumer, with a poll that waits for no second answer and asks no socket twice."""

from typing import Any

from kafka import KafkaConsumer


class PollingConsumer(KafkaConsumer):  # type: ignore[misc]
    """One whose poll returns as soon as it has records."""

    def _poll_once(self, timeout_ms: float, max_records: int, update_offsets: bool = True) -> Any:
        """Do what the library's does, but for the look at the sockets between its questions and its wait for an answer.

        An answer that this look finds, of a broker that was asked before, lies there until the next one has come.
        """
        self._coordinator.poll()
        if not self._subscription.has_all_fetch_positions():
            self._update_fetch_positions(self._subscription.missing_fetch_positions())
        records, partial = self._fetcher.fetched_records(max_records, update_offsets=update_offsets)
        if records:
            if not partial and self._fetcher.send_fetches():
                self._client.poll(timeout_ms=0)
            return records
        self._fetcher.send_fetches()
        self._client.poll(timeout_ms=min(timeout_ms, self._coordinator.time_to_next_poll() * 1000))
        if self._coordinator.need_rejoin():
            return {}
        records, _ = self._fetcher.fetched_records(max_records, update_offsets=update_offsets)
        return records
