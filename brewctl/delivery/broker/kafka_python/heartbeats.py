"""Heartbeats without a thread that wakes ten times a second.

The library sends heartbeats from a thread, which wakes ten times a second and polls for their answers. A poll of the
member ends when a heartbeat is due, and asks that thread to send it. But the thread needs the lock that the poll takes
again at once, so the poll spins, some fifty times a second, until the thread gets the lock.

Here a poll sends a due heartbeat itself. The thread is for the time between polls, such as a long transaction, and
sleeps until the next heartbeat is due. While an answer is outstanding, or a heartbeat has failed, it wakes as often as
the library's.
"""

import weakref

from kafka.coordinator import base, consumer

from brewctl.delivery.broker.kafka_python import library_patches  # noqa: F401 - first: it replaces the clock that this module reads


class HeartbeatThread(base.HeartbeatThread):  # type: ignore[misc]
    """Sends heartbeats between polls. Wakes when one is due."""

    def _run_once(self) -> None:
        # Both locks for all of it. Otherwise a close between the check of `closed` and the wait would go unnoticed
        # until the wait's end.
        with self.coordinator._client._lock, self.coordinator._lock:  # noqa: SLF001 - in the library's order
            if not self.closed and (wait_s := self._idle_s()) > 0:
                self.coordinator._lock.wait(wait_s)  # noqa: SLF001
                if self._idle_s() > 0:  # a poll has sent the heartbeat meanwhile
                    return
            if not self.closed:
                super()._run_once()

    def _idle_s(self) -> float:
        """Return for how many seconds this thread has nothing to do; 0 to let the library's own code decide."""
        coordinator, heartbeat = self.coordinator, self.coordinator.heartbeat
        if not self.enabled or coordinator.state is not base.MemberState.STABLE or coordinator.coordinator_unknown():
            return 0.0
        if heartbeat.heartbeat_failed or heartbeat.last_send > max(heartbeat.last_receive, heartbeat.last_reset):
            return 0.0
        if (due_s := heartbeat.time_to_next_heartbeat()) <= 0:
            return 0.0
        # A moment later than the heartbeat is due, so that a poll in progress sends it first.
        due_s += heartbeat.config["retry_backoff_ms"] / 1000
        leave_s = heartbeat.last_poll + heartbeat.config["max_poll_interval_ms"] / 1000 - base.time.time()
        return float(min(due_s, leave_s))


class Coordinator(consumer.ConsumerCoordinator):  # type: ignore[misc]
    """Sends a due heartbeat from within a poll."""

    _heartbeat_thread: HeartbeatThread | None

    def _start_heartbeat_thread(self) -> None:
        if self._heartbeat_thread is None:
            self._heartbeat_thread = HeartbeatThread(weakref.proxy(self))
            self._heartbeat_thread.daemon = True
            self._heartbeat_thread.start()

    def poll_heartbeat(self) -> None:
        """Send a due heartbeat, and do what the library's method does. Raises the error that ended the thread."""
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
