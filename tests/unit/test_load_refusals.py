"""A load's cancels, its refusals, and the calls that no service may take."""

from typing import Any

import grpc
import pytest

from brewctl.delivery.orders.cancellation import LONGEST_REASON
from brewctl.lab.load.cancels import LATER_S
from brewctl.lab.load.load import CallOutcome, History, Load
from tests.order_server import serving
from tests.unit.load_runs import run

Code = grpc.StatusCode


def test_a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_written() -> None:
    """The first try may have been committed: the last answer tells nothing of it."""

    def refuses(at: int, context: Any) -> None:
        if at == 0:
            context.abort(Code.CANCELLED, "the answer is lost")
        context.abort(Code.FAILED_PRECONDITION, "not now")

    with serving(refuses) as server:
        told = History()
        run(Load([server.address], told.record, concurrency=1, orders=1))
    assert len(server.requests) == 2
    assert [call.outcome for call in told.calls] == [CallOutcome.UNKNOWN]


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION])
def test_a_call_that_was_refused_at_every_try_wrote_nothing(code: grpc.StatusCode) -> None:
    with serving(lambda _at, context: context.abort(code, "no")) as server:
        told = History()
        run(Load([server.address], told.record, concurrency=1, orders=1, timeout_s=0.5))
    assert [call.outcome for call in told.calls] == [CallOutcome.FAILED]


def test_some_calls_ask_for_what_no_service_may_take() -> None:
    with serving() as server:
        run(Load([server.address], History().record, concurrency=1, orders=9, invalid_every=3))
    assert [request.currency for request in server.requests] == ["NONE", "EUR", "EUR"] * 3


def test_half_of_the_cancels_come_at_once_and_half_later() -> None:
    told = History()
    with serving() as server:
        load = Load(
            [server.address], told.record, concurrency=4, orders=100, cancel=0.2, record_cancel=told.record_cancel
        )
        run(load)
    answered = {call.order_id: call.answered_s for call in told.calls}
    assert len(told.cancels) == len(server.cancels) == 20
    assert len({cancel.order_id for cancel in told.cancels}) == 20
    later = [cancel for cancel in told.cancels if not cancel.at_once]
    assert len(later) == 10
    for cancel in told.cancels:
        assert (cancel.outcome, cancel.error) == (CallOutcome.ACKNOWLEDGED, None)
        assert cancel.at_once or cancel.begun_s - answered[cancel.order_id] >= LATER_S


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 30)])
def test_none_or_all_are_cancelled(share: float, count: int) -> None:
    told = History()
    with serving() as server:
        run(Load([server.address], told.record, orders=30, cancel=share, record_cancel=told.record_cancel))
    assert len(told.cancels) == len(server.cancels) == count


def test_every_third_cancel_asks_for_what_no_service_may_take_where_calls_do_too() -> None:
    for every in (0, 10):
        told = History()
        with serving() as server:
            load = Load(
                [server.address],
                told.record,
                concurrency=1,
                orders=12,
                cancel=1,
                invalid_every=every,
                record_cancel=told.record_cancel,
            )
            run(load)
        too_long = [len(each.reason) > LONGEST_REASON for each in server.cancels]
        assert too_long == [bool(every) and at % 3 == 0 for at in range(12)]


def test_what_a_cancel_was_told() -> None:
    def answers(at: int, context: Any) -> None:
        if at == 0:
            context.abort(Code.NOT_FOUND, "gone")
        if at == 1:
            context.abort(Code.INTERNAL, "who knows")

    told = History()
    with serving(cancel=answers) as server:
        load = Load([server.address], told.record, orders=2, concurrency=1, cancel=1, record_cancel=told.record_cancel)
        run(load)
    failed, retried = told.cancels
    assert (failed.outcome, failed.retried) == (CallOutcome.FAILED, False)
    assert (retried.outcome, retried.retried, retried.at_once) == (CallOutcome.ACKNOWLEDGED, True, False)


def test_a_load_ends_where_nobody_takes_its_later_cancels() -> None:
    told = History()
    with serving(cancel=lambda _at, context: context.abort(Code.UNAVAILABLE, "away")) as server:
        load = Load(
            [server.address],
            told.record,
            orders=40,
            concurrency=1,
            cancel=1,
            timeout_s=0.2,
            record_cancel=told.record_cancel,
        )
        run(load)
    assert {cancel.outcome for cancel in told.cancels} <= {CallOutcome.FAILED, CallOutcome.UNKNOWN}
