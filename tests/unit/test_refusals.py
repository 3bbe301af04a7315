"""Which errors are the order's own, and which pass: a wrong yes loses a retry, a wrong no asks for ever."""

import psycopg
import pytest

from brewctl.delivery.orders import refusals


def server_error(sqlstate: str) -> psycopg.Error:
    """An error as the server would say it."""

    class Said(psycopg.DatabaseError):
        pass

    Said.sqlstate = sqlstate
    return Said("so it is")


PASSING = ["08006", "25006", "26000", "40001", "40P01", "42P01", "53100", "53300", "55P03", "57014", "57P01", "XX000"]
NEVER = ["22001", "22003", "22P02", "23502", "23503", "23505", "23514", "42501", "42703", "44000", "54000"]
CUSTOM = ["P0001", "P0004", "BR001", "ZZ999"]


@pytest.mark.parametrize("sqlstate", PASSING)
def test_what_has_passed_by_another_try_is_asked_for_again(sqlstate: str) -> None:
    assert not refusals.never_taken(server_error(sqlstate))


@pytest.mark.parametrize("sqlstate", [*NEVER, *CUSTOM])
def test_what_fails_the_same_way_again_is_not(sqlstate: str) -> None:
    error = server_error(sqlstate)
    assert refusals.never_taken(error)
    assert not refusals.is_text(error)


@pytest.mark.parametrize("sqlstate", ["22021", "22P05"])
def test_text_without_bytes_is_bad_input(sqlstate: str) -> None:
    error = server_error(sqlstate)
    assert refusals.never_taken(error)
    assert refusals.is_text(error)


def test_what_the_client_library_can_not_send_is_bad_input() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "☕".encode("latin-1")
    for error in (caught.value, psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")):
        assert refusals.never_taken(error)
        assert refusals.is_text(error)


@pytest.mark.parametrize(
    "error", [psycopg.OperationalError("gone"), psycopg.InterfaceError("closed"), RuntimeError("a bug"), TimeoutError()]
)
def test_an_error_without_a_code_says_nothing_about_the_order(error: Exception) -> None:
    assert not refusals.never_taken(error)


def test_words_are_one_line_of_a_bounded_length() -> None:
    assert refusals.words(RuntimeError("two\nlines")) == "two lines"
    assert refusals.words(RuntimeError()) == "RuntimeError"
    assert refusals.words(RuntimeError("x" * 1000)) == "x" * 300 + "…"
