"""`brewctl cancel-order` against an order-service of the tests' own: what it prints, and what it does if one fails."""

import uuid
from typing import Any

import grpc
import pytest

from tests.conftest import begin, run
from tests.order_server import serving

IDS = [str(uuid.UUID(int=number)) for number in range(1, 21)]


def test_an_order_that_is_named_twice_is_cancelled_twice_and_printed_twice() -> None:
    with serving() as server:
        done = run("cancel-order", IDS[0], IDS[0].upper(), "--addr", server.address)
        assert [each.order_id for each in server.cancels] == [IDS[0]] * 2
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{IDS[0]}\n" * 2, "")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_who_has_gone_leaves_no_order_uncancelled(options: tuple[str, ...]) -> None:
    with serving() as server:
        process = begin("cancel-order", *IDS, *options, "--addr", server.address, env={})
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert (process.wait(60), errors) == (0, "")
        assert [each.order_id for each in server.cancels] == IDS


def test_what_was_refused_before_nobody_answered_is_said_too() -> None:
    def answer(at: int, context: Any) -> None:
        if at == 0:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
        context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    with serving(cancel=answer) as server:
        done = run("cancel-order", *IDS[:3], "--timeout", "0.5", "--addr", server.address)
    first, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (3, "")
    assert first.endswith("answered NOT_FOUND: no such order")
    assert last.startswith(f"brewctl: order {IDS[1]} may be cancelled, or not: ")
    assert f"ask again with `brewctl cancel-order {IDS[1]} --addr " in last


def test_the_help_fits_into_80_columns() -> None:
    shown = run("cancel-order", "--help", env={"COLUMNS": "80"})
    text = [line.strip() for line in shown.stdout.splitlines()]
    assert "Exit 1 where an order is not there: the others are cancelled all the same." in text
