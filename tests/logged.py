"""What brewctl logs while a test looks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from brewctl.log import Said


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[Said] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.msg, Said)
        self.said.append(record.msg)


@contextmanager
def captured() -> Iterator[list[Said]]:
    """Yield the events of brewctl's own loggers, from INFO on, as they come."""
    logger, handler = logging.getLogger("brewctl"), _Kept()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
