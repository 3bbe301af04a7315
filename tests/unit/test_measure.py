"""What is made of the calls of a load: counts, rates, failures by reason, percentiles."""

import threading
from typing import Any

import grpc
import pytest

from brewctl.client import UnknownOutcomeError
from brewctl.errors import BrewError, UnreachableError
from brewctl.lab.load.load import CallOutcome, Load, LoadCall
from brewctl.lab.load.measure import Measurement, measure
from tests.order_server import serving
from tests.unit.test_load import STALL_S, stalls_first

NOWHERE = "127.0.0.1:1"


def call(
    begun_s: float, latency_s: float, *, intended_s: float | None = None, error: BrewError | None = None, tries: int = 1
) -> LoadCall:
    intended_s = begun_s if intended_s is None else intended_s
    outcome = (
        CallOutcome.UNKNOWN
        if isinstance(error, UnknownOutcomeError)
        else CallOutcome.FAILED
        if error
        else CallOutcome.ACKNOWLEDGED
    )
    return LoadCall("k", outcome, "", error, tries > 1, intended_s, begun_s, intended_s + latency_s)


def measured(*calls: LoadCall) -> Measurement:
    measurement = Measurement()
    for each in calls:
        measurement.record(each)
    return measurement


def test_figures() -> None:
    gone = UnknownOutcomeError("order k may exist: gone", hint="", idempotency_key="k", reason="gone")
    result = measured(
        call(0.0, 1.0),
        call(0.0, 1.0, tries=3),
        call(1.0, 3.0, error=BrewError("no", hint="ask")),
        call(1.0, 1.0, error=gone),
        call(2.0, 2.0, error=gone),
        call(2.0, 1.0),
    ).result(unsent=7)
    assert (result.count, result.failed, result.retries, result.unsent) == (6, 3, 1, 7)
    assert list(result.failures.items()) == [("gone", 2), ("no", 1)]
    assert result.seconds == 4.0
    assert result.rate_per_s == 3 / 4  # created
    assert result.mean_ms == pytest.approx(1500)
    assert result.max_ms == 3000
    assert result.percentile_ms(50) == pytest.approx(1000, rel=0.004)
    assert result.percentile_ms(80) == pytest.approx(2000, rel=0.004)


def test_latency_counts_from_the_intended_time() -> None:
    assert measured(call(5.0, 4.0, intended_s=2.0)).result().max_ms == 4000


def test_the_warm_up_is_not_measured() -> None:
    result = measured(call(-0.5, 9.0, error=BrewError("no")), call(-0.1, 9.0, tries=2), call(0.0, 1.0)).result()
    assert (result.count, result.failed, result.retries, result.seconds, result.max_ms) == (1, 0, 0, 1.0, 1000)


def test_what_waited_since_the_warm_up_is_measured() -> None:
    assert measured(call(0.1, 2.0, intended_s=-1.0)).result().count == 1


def test_nothing_was_measured() -> None:
    result = Measurement().result()
    assert (result.count, result.rate_per_s, result.mean_ms, result.max_ms, result.percentile_ms(99)) == (0, 0, 0, 0, 0)


def test_reasons_that_are_always_new_are_bounded() -> None:
    result = measured(*[call(0.0, 1.0, error=BrewError(f"no {at}")) for at in range(1000)]).result()
    assert result.failed == 1000
    assert len(result.failures) == 21
    assert result.failures["other reasons"] == 980


def test_a_result_is_of_its_time() -> None:
    measurement = measured(call(0.0, 1.0))
    before = measurement.result()
    measurement.record(call(0.0, 5.0, error=BrewError("no")))
    assert (before.count, before.failures, before.max_ms) == (1, {}, 1000)
    assert measurement.failed == 1


def test_it_ends_where_nobody_answers_at_all() -> None:
    with pytest.raises(UnreachableError, match="refused the connection"):
        measure([NOWHERE], warmup_s=0, orders=1)


def test_it_goes_on_where_somebody_did() -> None:
    away = UnreachableError("away")
    result = measured(call(0.0, 1.0), call(0.0, 1.0, error=away)).result()
    assert result.failures == {"away": 1}


def test_an_unknown_outcome_is_an_answer_of_a_kind() -> None:
    gone = UnknownOutcomeError("gone", hint="", idempotency_key="k", reason="gone")
    assert measured(call(0.0, 1.0, error=gone)).result().failed == 1


def test_orders_that_were_never_heard_of_have_one_reason() -> None:
    def never(_at: int, context: Any) -> None:
        # The service itself says when to ask again: after the caller's time.
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "60000"),))
        context.abort(grpc.StatusCode.INTERNAL, "the commit failed")

    measurement = Measurement()
    with serving(never) as server:
        Load([server.address], measurement.record, concurrency=2, orders=4, timeout_s=30).run(threading.Event())
    reason = f"order-service {server.address} answered INTERNAL: the commit failed"
    assert measurement.result().failures == {reason: 4}


def test_measuring_a_server_that_stalls() -> None:
    with serving(stalls_first) as server:
        result = measure([server.address], concurrency=1, rate=100, warmup_s=0, orders=6)
    assert (result.count, result.failed, result.unsent) == (6, 0, 0)
    # The last was due 50 ms after the first.
    assert result.percentile_ms(1) >= (STALL_S - 0.05) * 1000


def test_a_measurement_that_is_stopped() -> None:
    stop, measurement = threading.Event(), Measurement()
    with serving(lambda at, _: stop.set() if at == 10 else None) as server:
        Load([server.address], measurement.record, concurrency=2).run(stop)
    assert measurement.result().count == len(server.requests)
