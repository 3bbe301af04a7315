"""What `--watch` does while a server is away."""

import contextlib
from collections.abc import Iterator

import pytest

from brewctl.cli import watching
from brewctl.errors import UnreachableError

AWAY = UnreachableError("postgres h:1/b refused the connection", hint="run `brewctl up`")


def test_a_watch_connects_anew_after_an_outage() -> None:
    seen: list[int | Exception] = [1, AWAY, AWAY, 2]

    @contextlib.contextmanager
    def connect() -> Iterator[None]:
        if seen[0] is AWAY:
            raise seen.pop(0)  # type: ignore[misc]
        yield

    def look(_server: None) -> int:
        now = seen.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    later = watching.later(connect, look, every_s=0)
    assert [next(later) for _ in range(4)] == [1, AWAY, AWAY, 2]


def test_an_outage_is_said_once_and_so_is_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    other = UnreachableError("postgres h:1/b is still starting")
    watching.show_lines(1, [2, AWAY, other, AWAY, 3], print, server="postgres")
    said = capsys.readouterr()
    assert said.out.split() == ["1", "2", "3"]
    assert said.err.splitlines() == [
        "brewctl: postgres h:1/b refused the connection: trying again",
        "brewctl: postgres answers again",
    ]
