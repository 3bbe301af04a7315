"""Single keys of a terminal."""

import contextlib
import os
import pty
import termios
from collections.abc import Iterator

import pytest

from brewctl.cli.keys import open_keys
from brewctl.lifecycle import wait_until


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: who types, and who reads."""
    typist, reader = pty.openpty()
    yield typist, reader
    os.close(reader)
    os.close(typist)


def test_a_key_counts_without_enter_and_is_not_seen(terminal: tuple[int, int]) -> None:
    typist, reader = terminal
    with open_keys(reader) as keys:
        assert not keys.pressed()
        os.write(typist, b" ")
        wait_until("the key", keys.pressed, timeout_s=60)
        assert not keys.pressed(), "once is enough"
        os.write(reader, b"said")
        assert os.read(typist, 100) == b"said", "no echo before it"


def test_a_key_that_came_too_early_is_forgotten(terminal: tuple[int, int]) -> None:
    typist, reader = terminal
    with open_keys(reader) as keys:
        os.write(typist, b" ")
        keys.forget()
        assert not keys.pressed()


@pytest.mark.parametrize("key", [b"q", b"Q"])
def test_q_is_the_end(terminal: tuple[int, int], key: bytes) -> None:
    typist, reader = terminal
    with open_keys(reader) as keys:
        os.write(typist, key)
        with pytest.raises(KeyboardInterrupt):
            wait_until("the end", keys.pressed, timeout_s=60)


def test_the_terminal_is_as_before_whatever_happens(terminal: tuple[int, int]) -> None:
    _, reader = terminal
    before = termios.tcgetattr(reader)
    with contextlib.suppress(KeyboardInterrupt), open_keys(reader):
        assert termios.tcgetattr(reader) != before
        raise KeyboardInterrupt
    assert termios.tcgetattr(reader) == before
