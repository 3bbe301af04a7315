"""Logs: one `key=value` (or JSON) line an event, on stderr, with the node on every line.

They go through Python's logging, so that the libraries' warnings get the same format.
"""

import json
import logging
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from brewctl import stdout

_FIRST = ("ts", "level", "node", "event")  # the first keys of a logfmt line; the words follow in the caller's order


class Said(NamedTuple):
    """The message of a log record: the event's name, and its keys and values (the words)."""

    event: str
    words: Mapping[str, object]

    def __str__(self) -> str:
        return _logfmt({"event": self.event, **self.words})


class Logger:
    """A module's logger: `log.info("published", rows=100)` is a line with `event=published rows=100`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, *, exc_info: BaseException | None = None, **words: object) -> None:
        """Log a line that only `-v` shows, with the traceback of `exc_info`."""
        self._logger.debug(Said(event, words), exc_info=exc_info)

    def info(self, event: str, **words: object) -> None:
        """Log a normal event."""
        self._logger.info(Said(event, words))

    def warning(self, event: str, **words: object) -> None:
        """Log an event that may need attention."""
        self._logger.warning(Said(event, words))

    def error(self, event: str, **words: object) -> None:
        """Log an event that needs attention."""
        self._logger.error(Said(event, words))

    def exception(self, event: str, **words: object) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._logger.exception(Said(event, words))  # noqa: LOG004 - the caller handles it


class _Lines(logging.Formatter):
    """Formats every log record as a line. In a library's record the message is the event."""

    def __init__(self, node: str, render: Callable[[dict[str, object]], str]) -> None:
        super().__init__()
        self._node = node
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        message: Any = record.msg
        said = message if isinstance(message, Said) else Said(record.getMessage(), {})
        line = {**said.words, "event": said.event, "level": record.levelname.lower()}
        if self._node:
            line.setdefault("node", self._node)
        line["ts"] = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        if record.exc_info and record.exc_info[1]:
            line["exception"] = self.formatException(record.exc_info)
        return self._render(line)


def _json(line: dict[str, object]) -> str:
    return json.dumps(line, default=repr)


def _logfmt(line: dict[str, object]) -> str:
    first = {key: line[key] for key in _FIRST if key in line}
    return " ".join(_pair(key, value) for key, value in {**first, **line}.items())


def _pair(key: str, value: object) -> str:
    """Write `key=value`; True is the key alone, None has no value."""
    if value is True:
        return key
    if value is None or value is False:
        return f"{key}={'' if value is None else 'false'}"
    text = str(value)
    quoted = any(character in text for character in ' ="')
    if quoted:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    text = text.replace("\n", "\\n")
    return f'{key}="{text}"' if quoted else f"{key}={text}"


def configure(*, node: str = "", as_json: bool = False, verbose: bool = False) -> None:
    """Send every log record of this process to stderr; `verbose` adds debug lines and the libraries' info."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(node, _json if as_json else _logfmt))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, force=True)
    logging.getLogger("brewctl").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        # The Kafka library warns about each of its retries. brewctl logs the important ones itself, once.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


def get(name: str) -> Logger:
    """Return the logger of a module."""
    return Logger(name)


class Sum:
    """Adds up counts of many batches, and logs the sums at most once a second: a line each would cost too much."""

    def __init__(self, logger: Logger, event: str, *, every_s: float = 1.0) -> None:
        self._logger = logger
        self._event = event
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._told_at = 0.0

    def add(self, **counts: int) -> None:
        """Add the counts of a batch."""
        self._counts.update(counts)
        self.tell()

    def tell(self, *, at_once: bool = False) -> None:
        """Log the sums since the last line, if there are any and a line is due. Call it regularly."""
        now = time.monotonic()
        if self._counts and (at_once or now >= self._told_at + self._every_s):
            self._logger.info(self._event, **self._counts)
            self._counts.clear()
            self._told_at = now


class Seldom:
    """Logs a warning that many calls may cause, at most once in `every_s` seconds. For any thread."""

    def __init__(self, logger: Logger, event: str, *, every_s: float = 1.0) -> None:
        self._logger = logger
        self._event = event
        self._every_s = every_s
        self._lock = threading.Lock()
        self._told_at = -math.inf
        self._left_out = 0

    def warn(self, **words: object) -> bool:
        """Log the line, with the number of lines left out since the last one. False if this one is left out."""
        with self._lock:
            now = time.monotonic()
            if now < self._told_at + self._every_s:
                self._left_out += 1
                return False
            self._told_at, left_out, self._left_out = now, self._left_out, 0
        self._logger.warning(self._event, **words, **({"left_out": left_out} if left_out else {}))
        return True


def reason(error: BaseException) -> str:
    """Return an exception's message in one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def say(node: str, line: str) -> None:
    """Print a line of the contract to stdout at once, with the node first. A closed stdout does not end the role."""
    stdout.put(f"[{node}] {line}")
