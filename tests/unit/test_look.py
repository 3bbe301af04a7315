"""The visual language of the demo and of top."""

import pytest

from brewctl.lab import look


@pytest.mark.parametrize("word", ["runs", "starts", "paused", "silent", "stopped", "killed", "gone"])
def test_a_state_has_a_word_and_a_sign(word: str) -> None:
    sign, said = look.state(word).plain.split()
    assert (len(sign), said) == (1, word)


def test_signs_tell_what_works_from_what_does_not() -> None:
    assert look.state("runs").plain[0] not in {look.state(word).plain[0] for word in ("paused", "silent", "killed")}


def test_nodes_keep_their_colours() -> None:
    names = ["inventory-1", "inventory-2", "notification-1"]
    assert look.colours(names) == look.colours(reversed(names))
    assert len(set(look.colours(names).values())) == 3


def test_a_strip_shows_what_is_owned_without_colours_too() -> None:
    assert look.strip(range(6), [0, 2, 4], colour="cyan").plain == " 0  ·  2  ·  4  · "
    assert look.strip(range(3), [0, 2], colour="cyan", quiet=True).plain == "✗0  · ✗2 "


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], "   "), ([7], "  █"), ([0, 0, 0], "▁▁▁"), ([9, 0, 7, 3.5], "▁█▅"), ([1e9, 1, 1], "█▁▁")],
)
def test_a_sparkline_shows_the_last_values(values: list[float], drawn: str) -> None:
    assert look.sparkline(values, 3) == drawn


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (61, "61 s"), (120, "2 min"), (36_000, "10 h")]
)
def test_a_time_as_people_say_it(seconds: float, written: str) -> None:
    assert look.ago(seconds) == written
