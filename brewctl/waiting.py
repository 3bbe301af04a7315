"""`--wait`: a role whose servers, tables or topic come later tries again, instead of ending with an error.

What is waited for is all that another step of a deployment makes: a server that can't be reached (UnreachableError),
tables, topics and rights that are not there yet (NotYetError). A refused password is among it: PostgreSQL says the same
of a role that has not been created yet. What no waiting mends, such as a malformed URL or a taken port, ends at once.
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
# Pauses between two tries: soon enough after the servers are there, and seldom enough for a server that starts.
_FIRST_S, _LONGEST_S = 0.2, 2.0
# A try that is under way at a stop has so long to end by itself.
_TRY_ENDS_S = 0.2

Answer = TypeVar("Answer")
Tell = Callable[[BrewError], None]


def seconds(value: object) -> float:
    """Read the value of `--wait`: a number of seconds, or `forever`; nothing is 0. Raises UsageError."""
    word = str(value).strip()
    if word.lower() == FOREVER:
        return math.inf
    if word and not _SECONDS.fullmatch(word):
        raise UsageError(f"--wait {word[:80]!r} is no number of seconds", hint=f"use a number such as 60, or {FOREVER}")
    return float(word or 0)


def written(wait_s: float) -> str:
    """Write seconds so that `seconds` reads them."""
    return FOREVER if wait_s == math.inf else f"{wait_s:.3f}"


def log_it(error: BrewError) -> None:
    """Log what is waited for."""
    logger.warning("waits", reason=error.message, hint=error.hint)


def until_there(
    attempt: Callable[[], Answer],
    wait_s: float,
    stop: threading.Event,
    *,
    tell: Tell = log_it,
) -> Answer | None:
    """Try until it succeeds, for `wait_s` seconds at most, and return its answer; None where a stop came first.

    `tell` hears of the first failure, and of each later one that says something else. Raises what the last try raised;
    at once what no waiting mends, and what comes from a role that had started (`lifecycle.has_begun`).
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
    """Run a role, as `until_there` does. With `leaves` a stop during a try that hangs ends the process at once, code 0.

    Such a try, of a host that swallows what is sent to it or of a name that is looked up, has nothing in hand. Without
    a wait this is `run` alone.
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
