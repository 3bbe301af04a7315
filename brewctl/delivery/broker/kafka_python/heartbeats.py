"""Heartbeats that need no timer of a tenth of a second.

The library sends them from a thread that wakes ten times a second, and polls for their answers. While a member polls,
the library's poll ends when one is due, and asks that thread for it; but the thread needs the lock that the poll takes
again at once, so the poll goes round and round until the thread gets it: some fifty times a second, for nothing.

Here a poll sends what is due by itself. The thread stays for the time between polls, such as a long transaction, and
waits until the next one is due. While an answer is outstanding, or a heartbeat has failed, it looks as often as the
library's.
"""

import weakref

from kafka.coordinator import base, consumer

from brewctl.delivery.broker.kafka_python import library_patches  # noqa: F401 - first: it sets the clock that is read here


class HeartbeatThread(base.HeartbeatThread):  # type: ignore[misc]
    """Sends heartbeats while nobody polls. Wakes when one is due."""

    def _run_once(self) -> None:
        # One lock for all of it: a stop that comes between a look at `closed` and the wait would be waited for.
        with self.coordinator._client._lock, self.coordinator._lock:  # noqa: SLF001 - in the library's order
            if not self.closed and (wait_s := self._idle_s()) > 0:
                self.coordinator._lock.wait(wait_s)  # noqa: SLF001
                if self._idle_s() > 0:  # a poll has sent it meanwhile
                    return
            if not self.closed:
                super()._run_once()

    def _idle_s(self) -> float:
        """Say for how long there is nothing to do here; 0 where it is for the library to say."""
        coordinator, heartbeat = self.coordinator, self.coordinator.heartbeat
        if not self.enabled or coordinator.state is not base.MemberState.STABLE or coordinator.coordinator_unknown():
            return 0.0
        if heartbeat.heartbeat_failed or heartbeat.last_send > max(heartbeat.last_receive, heartbeat.last_reset):
            return 0.0
        if (due_s := heartbeat.time_to_next_heartbeat()) <= 0:
            return 0.0
        # A moment later than it is due: a poll that goes on comes first.
        due_s += heartbeat.config["retry_backoff_ms"] / 1000
        leave_s = heartbeat.last_poll + heartbeat.config["max_poll_interval_ms"] / 1000 - base.time.time()
        return float(min(due_s, leave_s))


class Coordinator(consumer.ConsumerCoordinator):  # type: ignore[misc]
    """Sends a heartbeat that is due within the poll."""

    _heartbeat_thread: HeartbeatThread | None

    def _start_heartbeat_thread(self) -> None:
        if self._heartbeat_thread is None:
            self._heartbeat_thread = HeartbeatThread(weakref.proxy(self))
            self._heartbeat_thread.daemon = True
            self._heartbeat_thread.start()

    def poll_heartbeat(self) -> None:
        """Do what the library's does, and what its thread would be woken for. Raises what ended that thread."""
        with self._client._lock, self._lock:  # noqa: SLF001 - in the library's order
            thread, heartbeat = self._heartbeat_thread, self.heartbeat
            if thread and thread.enabled and not thread.failed and self.state is base.MemberState.STABLE:
                if heartbeat.session_timeout_expired():
                    base.log.warning("Heartbeat session expired, marking coordinator dead")
                    self.coordinator_dead("Heartbeat session expired")
                elif heartbeat.should_heartbeat() and not self.coordinator_unknown():
                    heartbeat.sent_heartbeat()
                    future = self._send_heartbeat_request()
                    future.add_callback(thread._handle_heartbeat_success)  # noqa: SLF001
                    future.add_errback(thread._handle_heartbeat_failure)  # noqa: SLF001
            super().poll_heartbeat()
