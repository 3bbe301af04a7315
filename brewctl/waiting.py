"""`--wait`: a role retries its start until its servers, tables and topic exist, instead of ending with an error.

It waits for everything that another step of a deployment makes: servers that can't be reached (UnreachableError), and
missing tables, topics and rights (NotYetError). A refused password is one of these, because PostgreSQL answers the same
for a role that does not exist yet. Other errors, such as a malformed URL or a taken port, end the role at once.
"""

import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from brewctl import log
from brewctl.errors import BrewError, ExitCode, NotYetError, UnreachableError, UsageError
from brewctl.lifecycle import Backoff, has_begun

logger = log.get(__name__)

FOREVER = "forever"
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
# The first and the longest pause between two tries: short enough to start soon, and long enough not to load a server
# that is starting.
_FIRST_S, _LONGEST_S = 0.2, 2.0
# How long a try may go on after a stop.
_TRY_ENDS_S = 0.2

Answer = TypeVar("Answer")
Tell = Callable[[BrewError], None]


def seconds(value: object) -> float:
    """Read the value of `--wait`: a number of seconds, or `forever`; an empty value is 0. Raises UsageError."""
    word = str(value).strip()
    if word.lower() == FOREVER:
        return math.inf
    if word and not _SECONDS.fullmatch(word):
        raise UsageError(f"--wait {word[:80]!r} is no number of seconds", hint=f"use a number such as 60, or {FOREVER}")
    return float(word or 0)


def written(wait_s: float) -> str:
    """Return seconds in the form that `seconds` reads."""
    return FOREVER if wait_s == math.inf else f"{wait_s:.3f}"


def log_it(error: BrewError) -> None:
    """Log what the start waits for: the default of `tell`."""
    logger.warning("waits", reason=error.message, hint=error.hint)


def until_there(
    attempt: Callable[[], Answer],
    wait_s: float,
    stop: threading.Event,
    *,
    tell: Tell = log_it,
) -> Answer | None:
    """Call `attempt` until it succeeds, for at most `wait_s` seconds; return its result, or None after a stop.

    `tell` is called with the first failure, and with each later one that has another message. Raises the last failure
    when the time is up; at once any other error, and any failure of a role that had started (`lifecycle.has_begun`).
    """
    backoff = Backoff(stop, first_s=_FIRST_S, longest_s=_LONGEST_S)
    until = time.monotonic() + wait_s
    said = ""
    while not stop.is_set():
        try:
            return attempt()
        except (UnreachableError, NotYetError) as error:
            if has_begun(stop):
                raise
            if stop.is_set():
                break
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise
            if error.message != said:
                said = error.message
                tell(error)
        pause_s, _ = backoff.next()
        stop.wait(min(pause_s, left_s))
    return None


def start(
    run: Callable[[], None], wait_s: float, stop: threading.Event, *, leaves: bool = True, tell: Tell = log_it
) -> None:
    """Run a role, retrying its start as `until_there` does. With a `wait_s` of 0 only call `run`.

    `leaves`: a stop during a try that hangs ends the process at once, with code 0. A try may hang in a connection to a
    host that does not answer, or in the look-up of its name; it has no work in hand.
    """
    if not wait_s:
        run()
        return
    over = threading.Event()

    def leave() -> None:
        stop.wait()
        if not over.wait(_TRY_ENDS_S) and not has_begun(stop):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ExitCode.DONE)

    if leaves:
        threading.Thread(target=leave, name="leaver", daemon=True).start()
    try:
        until_there(run, wait_s, stop, tell=tell)
    finally:
        over.set()
