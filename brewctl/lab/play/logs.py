"""Merge and follow the logs of background nodes, also of ended ones."""

import heapq
import os
import re
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from brewctl.errors import BrewError

_LOOK_EVERY_S = 0.2
_LONGEST_BYTES = 64 * 1024
_TIME = re.compile(rb"ts=(\S+)")


class LogLine(NamedTuple):
    """A line of a node's log, without the line end."""

    at: bytes  # its time as text; of a line without one, the time of the line before
    node: str
    text: bytes


def known(home: Path) -> dict[str, Path]:
    """Return the path of every node's log, by the node's name."""
    return {path.stem: path for path in sorted((home / "logs").glob("*.log"))}


def read(
    home: Path, names: Collection[str] = (), *, tail: int | None = None, follow: bool = False
) -> Iterator[LogLine]:
    """Yield the lines of these nodes, or of all, by time; at first only the last `tail` of each.

    `follow`: go on for ever with new lines, also of new nodes. A log that is truncated or replaced is read from its new
    beginning. Raises BrewError if a log can't be read.
    """
    logs: dict[str, _FollowedLog] = {}
    with ExitStack() as stack:
        while True:
            lines = []
            for name, path in known(home).items():
                if names and name not in names:
                    continue
                if name not in logs:
                    logs[name] = _FollowedLog(name, path, tail)
                    stack.callback(logs[name].close)
                lines.append(logs[name].lines(unfinished=not follow))
            if tail is not None:
                lines = [iter(deque(part, tail)) for part in lines]
                tail = None
            yield from heapq.merge(*lines, key=lambda line: line.at)
            if not follow:
                return
            time.sleep(_LOOK_EVERY_S)


class _FollowedLog:
    """A log that is read further at each look."""

    def __init__(self, node: str, path: Path, tail: int | None) -> None:
        """Open no file yet. Reading begins a little more than `tail` lines before the end, or at the beginning."""
        self._node = node
        self._path = path
        self._tail = tail
        self._file: BinaryIO | None = None
        self._at = b""
        self._begun = b""  # an incomplete line at the end of the file

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def lines(self, *, unfinished: bool) -> Iterator[LogLine]:
        """Yield new lines. `unfinished`: also an incomplete last line."""
        # Checked before reading: no lines are added to a file after it was replaced.
        replaced = self._replaced()
        yield from self._rest(unfinished=unfinished or replaced)
        if replaced:
            self.close()
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return
            except OSError as error:
                raise BrewError(f"{self._path} can't be read ({(error.strerror or '').lower()})") from error
            if self._tail is not None:
                _near_end(self._file, self._tail)
                self._tail = None
            yield from self._rest(unfinished=unfinished)

    def _replaced(self) -> bool:
        if not self._file:
            return True
        try:
            there, read = self._path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) != (read.st_dev, read.st_ino) or there.st_size < self._file.tell()

    def _rest(self, *, unfinished: bool) -> Iterator[LogLine]:
        while self._file and (part := self._file.readline(_LONGEST_BYTES)):
            self._begun += part
            if part.endswith(b"\n") or len(self._begun) >= _LONGEST_BYTES:
                yield self._line()
        if unfinished and self._begun:
            yield self._line()

    def _line(self) -> LogLine:
        text, self._begun = self._begun.rstrip(b"\r\n"), b""
        if found := _TIME.match(text):
            self._at = found[1]
        return LogLine(self._at, self._node, text)


def _near_end(log: BinaryIO, lines: int) -> None:
    """Seek to a line with more than `lines` lines after it, without reading a large log from its beginning.

    At least the last 64 KiB are read, so that for a line without a time an earlier line usually has one.
    """
    end, last = log.seek(0, os.SEEK_END), _LONGEST_BYTES
    while last < end:
        log.seek(end - last)
        log.readline(last)
        begin = log.tell()
        if log.read(end - begin).count(b"\n") > lines:
            log.seek(begin)
            return
        last *= 2
    log.seek(0)
