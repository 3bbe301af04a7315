"""Where answers begin, and where they break off."""

import math
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brewctl.lab.network.wire import Cut, Faults, ProxiedConnection

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + stream.to_bytes(4) + payload


ANSWER = frame(HEADERS, b"status") + frame(DATA, b"result") + frame(HEADERS, b"trailers")
NOISE = frame(SETTINGS, b"", 0) + frame(PING, bytes(8), 0) + frame(DATA, b"")


@pytest.fixture
def connection() -> Iterator[ProxiedConnection]:
    with socket.socket() as client:
        connection = ProxiedConnection(client)
        yield connection
        connection.upstream.close()


def let_through(connection: ProxiedConnection, pieces: list[bytes], cut: Cut) -> bytes:
    """What the client gets of a stream."""
    passed = b""
    for piece in pieces:
        end = connection.breaks_at(piece, cut)
        passed += piece[:end]
        if end is not None:
            break
    return passed


@settings(deadline=None)
@given(st.data())
def test_an_http2_answer_is_found_however_the_stream_is_chopped(data: st.DataObject) -> None:
    frames = data.draw(st.lists(st.sampled_from([ANSWER, NOISE, frame(DATA, bytes(300)), frame(HEADERS, b"")])))
    stream = b"".join(frames)
    marks = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)))))
    pieces = [stream[begin:end] for begin, end in zip([0, *marks], [*marks, len(stream)], strict=True)]
    nth, after_bytes = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 14))
    answers = [
        at for at in range(len(stream)) if stream[at:].startswith((frame(DATA, b"result"), frame(DATA, bytes(300))))
    ]
    with socket.socket() as client:
        connection = ProxiedConnection(client)
        with connection.upstream:
            connection.note_request(PREFACE)
            passed = let_through(connection, pieces, Cut(after_bytes, nth, 1))
    if len(answers) < nth:
        assert passed == stream
        return
    # A header that came in two pieces is known when it is complete.
    assert passed == stream[: len(passed)]
    assert answers[nth - 1] + after_bytes <= len(passed) <= answers[nth - 1] + after_bytes + 8


@pytest.mark.parametrize(("after_bytes", "passed"), [(0, b""), (3, b"ans"), (5, b"answe"), (6, b"answer")])
def test_of_a_plain_answer_so_many_bytes_pass(connection: ProxiedConnection, after_bytes: int, passed: bytes) -> None:
    connection.note_request(b"question")
    connection.note_sent()
    assert let_through(connection, [b"answer"], Cut(after_bytes, 1, 1)) == passed


def test_an_answer_in_pieces_is_one(connection: ProxiedConnection) -> None:
    connection.note_request(b"question")
    connection.note_sent()
    assert let_through(connection, [b"a", b"ns", b"wer"], Cut(4, 1, 1)) == b"answ"


def test_a_shorter_answer_passes(connection: ProxiedConnection) -> None:
    cut = Cut(6, 1, 1)
    connection.note_request(b"question")
    for answer, passed in ((b"answer", b"answer"), (b"longer answer", b"longer")):
        connection.note_sent()
        assert let_through(connection, [answer], cut) == passed


def test_what_nobody_asked_for_is_no_answer(connection: ProxiedConnection) -> None:
    assert let_through(connection, [b"hello", b"are you there?"], Cut(0, 1, 1)) == b"helloare you there?"


def test_an_answer_that_had_begun_before_passes(connection: ProxiedConnection) -> None:
    connection.note_request(b"question")
    connection.note_sent()
    assert connection.breaks_at(b"ans", None) is None
    assert let_through(connection, [b"wer"], Cut(0, 1, 1)) == b"wer"


def test_settings_that_come_before_the_client_speaks(connection: ProxiedConnection) -> None:
    """A gRPC server does not wait for the client's preface."""
    cut = Cut(0, 1, 1)
    assert let_through(connection, [NOISE[:20], NOISE[20:]], cut) == NOISE
    connection.note_request(PREFACE[:1])
    connection.note_request(PREFACE[1:])
    connection.note_sent()
    assert let_through(connection, [ANSWER], cut) == frame(HEADERS, b"status")


@pytest.mark.parametrize("wrong", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_a_cut_that_makes_no_sense(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Cut(*wrong)


def test_a_line_that_makes_no_sense() -> None:
    for wrong in (Faults(latency_s=0), Faults(bytes_per_s=1)):
        assert wrong.piece_bytes > 0
    with pytest.raises(ValueError, match="latency"):
        Faults(latency_s=-1)
    with pytest.raises(ValueError, match="latency"):
        Faults(jitter_s=-1)
    with pytest.raises(ValueError, match="bandwidth"):
        Faults(bytes_per_s=0)


@pytest.mark.parametrize("bytes_per_s", [1, 1000, 10**6, 10**12, math.inf])
def test_there_is_always_room_for_a_piece(bytes_per_s: float) -> None:
    faults = Faults(bytes_per_s=bytes_per_s, latency_s=3600)
    assert 0 < faults.piece_bytes <= faults.room_bytes <= 256 * 1024
