"""The door that all calls come in by: it begins each of them, and ends those whose client keeps it waiting."""

import threading
import time
from collections import Counter
from concurrent.futures import Executor
from typing import Any

import grpc

from brewctl import log
from brewctl.limits import Limits
from brewctl.probes import heartbeat
from brewctl.roles.order.call import Call
from brewctl.roles.order.status import Status

logger = log.get(__name__)


class Door(Executor):
    """The executor that grpcio hands its calls to, in place of a pool of threads.

    A call may wait `create_s` for its client to send its message or to read its answer. If more than `waiting_calls`
    wait, those that have waited longest for a message are ended, and answers are dropped that were not read for a
    tenth of that time.
    """

    def __init__(self, limits: Limits, *, full: Status) -> None:
        """`full` ends a call that waited for its message and made room for others."""
        self._within_s = limits.create_s
        self._most = limits.waiting_calls
        self._full = full
        self._late = Status(grpc.StatusCode.DEADLINE_EXCEEDED, f"no message came within {limits.create_s:g} s")
        self._lock = threading.Lock()
        # Since when each call waits for its client's message, or for its answer to be read; longest first.
        self._silent: dict[Call, float] = {}
        self._unread: dict[Call, float] = {}
        self._ended: Counter[str] = Counter()
        self._held_on = log.Seldom(logger, "calls_ended")
        self._failed = log.Seldom(logger, "call_failed")
        # grpcio's serving thread, in which calls begin.
        self.serving = heartbeat.Loop("calls", within_s=limits.longest_turn_s)
        self._loop = heartbeat.Loop("reaper", within_s=limits.longest_turn_s)
        self._wake = threading.Event()
        self._closed = False
        self._reaper = threading.Thread(target=self._reap, name="reaper", daemon=True)
        self._reaper.start()

    def submit(self, _run: Any, _respond: Any = None, /, *args: Any, **_kwargs: Any) -> Any:
        """Begin a call, in this thread. The arguments are those of grpcio's own handler."""
        event, state, begin, *_ = args
        call = Call(self, event, state, within_s=self._within_s)
        call.add_done_callback(self.waits_no_more)
        self.serving.beat()
        call.guarded(lambda: begin(call))
        self.serving.rest()
        return call

    def waits(self, call: Call, *, for_message: bool) -> None:
        """Note that a call waits for its client from now on: for a message, or until its answer is read."""
        waiting = self._silent if for_message else self._unread
        with self._lock:
            self._silent.pop(call, None)
            self._unread.pop(call, None)
            waiting[call] = time.monotonic()
            if len(waiting) > self._most:
                self._wake.set()

    def waits_no_more(self, call: Any) -> None:
        """Note that its client has done what was waited for, or that the call is over."""
        with self._lock:
            self._silent.pop(call, None)
            self._unread.pop(call, None)

    def refuse(self, status: Status) -> None:
        """End the calls whose message has not come."""
        with self._lock:
            silent = list(self._silent)
        for call in silent:
            call.end(status)

    def failed(self, error: Exception) -> None:
        """Log that a call ended by an exception, and why."""
        self._failed.warn(reason=log.reason(error), hint="with -v the log says where")
        logger.debug("call_failed", exc_info=error)

    def close(self) -> None:
        """Stop ending calls that wait."""
        self._closed = True
        self._wake.set()
        self._reaper.join()

    def _reap(self) -> None:
        with self._loop:
            while not self._closed:
                self._loop.beat()
                self._look_after()

    def _look_after(self) -> None:
        self._wake.wait(self._within_s / 20)
        self._wake.clear()
        with self._lock:
            silent, unread = list(self._silent.items()), list(self._unread.items())
        now = time.monotonic()
        for number, (call, since) in enumerate(silent):
            if since <= now - self._within_s:
                self._give_up(call, call.at_rest or self._late)
            elif number < len(silent) - self._most:
                self._give_up(call, self._full)
        for number, (call, since) in enumerate(unread):
            shorter = number < len(unread) - self._most
            if since <= now - self._within_s / (10 if shorter else 1):
                self._hang_up(call)
        hint = "their clients sent no message, or read no answer: nothing was written for the former"
        if self._ended and self._held_on.warn(**self._ended, hint=hint):
            self._ended.clear()

    def _give_up(self, call: Call, status: Status) -> None:
        if status.code is not grpc.StatusCode.OK:
            self._ended["without_message"] += 1
        call.guarded(lambda: call.end(status))

    def _hang_up(self, call: Call) -> None:
        self._ended["not_read"] += 1
        self.waits_no_more(call)
        call.guarded(call.cancel)
