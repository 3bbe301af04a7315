"""Logs: one `key=value` (or JSON) line an event, on stderr, with the node on every line.

Python's own logging carries the records, so that the libraries' warnings come out in the same shape.
"""

import logging
import math
import sys
import threading
import time
from collections import Counter

import structlog

from brewctl import stdout


def configure(*, node: str = "", as_json: bool = False, verbose: bool = False) -> None:
    """Send every log record of this process to stderr; `verbose` adds debug lines and the libraries' info."""

    def add_node(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if node:
            event.setdefault("node", node)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        add_node,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.processors.LogfmtRenderer(key_order=["ts", "level", "node", "event"], drop_missing=True)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, force=True)
    logging.getLogger("brewctl").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        # The Kafka client warns about every retry of its own; what matters of it we say ourselves, once.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module: `log.info("published", rows=100)`."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


class Sum:
    """Adds up what many batches did, and logs it once a second at most: a line each would cost more than the batch."""

    def __init__(self, logger: structlog.stdlib.BoundLogger, event: str, *, every_s: float = 1.0) -> None:
        self._logger = logger
        self._event = event
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._told_at = 0.0

    def add(self, **counts: int) -> None:
        """Add what a batch did."""
        self._counts.update(counts)
        self.tell()

    def tell(self, *, at_once: bool = False) -> None:
        """Log what was added since the last line, if there is any and it is time. To be called now and then."""
        now = time.monotonic()
        if self._counts and (at_once or now >= self._told_at + self._every_s):
            self._logger.info(self._event, **self._counts)
            self._counts.clear()
            self._told_at = now


class Seldom:
    """Logs a warning that many calls may give rise to, once in `every_s` at most, from any thread."""

    def __init__(self, logger: structlog.stdlib.BoundLogger, event: str, *, every_s: float = 1.0) -> None:
        self._logger = logger
        self._event = event
        self._every_s = every_s
        self._lock = threading.Lock()
        self._told_at = -math.inf
        self._left_out = 0

    def warn(self, **words: object) -> bool:
        """Log the line, with how many were left out since the last one, or leave it out: False."""
        with self._lock:
            now = time.monotonic()
            if now < self._told_at + self._every_s:
                self._left_out += 1
                return False
            self._told_at, left_out, self._left_out = now, self._left_out, 0
        self._logger.warning(self._event, **words, **({"left_out": left_out} if left_out else {}))
        return True


def reason(error: BaseException) -> str:
    """Say what an exception says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def say(node: str, line: str) -> None:
    """Print a line that people and tests read (see the contract): stdout, the node first, at once.

    A role outlives its reader.
    """
    stdout.put(f"[{node}] {line}")
