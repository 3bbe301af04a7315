"""How many events a consumer's transaction has: halved by a timeout, grown by the time that the last ones took."""

import dataclasses

import pytest

from brewctl.delivery.inbox.batch_size import BatchSize
from brewctl.limits import Limits

LIMITS = dataclasses.replace(Limits(), consume_records=2000)


def grown() -> BatchSize:
    batch_size = BatchSize(LIMITS)
    while batch_size.size < LIMITS.consume_records:
        batch_size.note(batch_size.size, 0.01)
    return batch_size


def test_quick_transactions_grow_to_the_most_at_once() -> None:
    assert grown().size == LIMITS.consume_records
    assert grown().trouble == ""


def test_a_timeout_halves_down_to_one_event(caplog: pytest.LogCaptureFixture) -> None:
    batch_size = grown()
    sizes = []
    for _ in range(13):
        batch_size.note_timeout(batch_size.size, "statement timeout")
        sizes.append(batch_size.size)
    assert sizes == [1000, 500, 250, 125, 62, 31, 15, 7, 3, 1, 1, 1, 1]
    assert caplog.text.count("effect_slow") == 1
    for _ in range(11):
        batch_size.note(batch_size.size, 0.01)
    assert batch_size.size == LIMITS.consume_records


@pytest.mark.parametrize("effect_s", [0.0005, 0.002, 0.02, 0.3, 20.0])
def test_a_steady_effect_settles_where_everyone_can_wait_for_a_transaction(effect_s: float) -> None:
    batch_size = grown()
    for _ in range(20):
        batch_size.note(batch_size.size, batch_size.size * effect_s)
    took_s = batch_size.size * effect_s
    assert batch_size.size in {1, LIMITS.consume_records} or batch_size.target_s / 4 <= took_s <= batch_size.target_s
    assert took_s <= max(batch_size.target_s, effect_s)
    assert batch_size.target_s <= min(LIMITS.drain_s, LIMITS.session_s, LIMITS.database_statement_s) / 4


def test_few_events_that_are_quick_say_nothing_of_many() -> None:
    batch_size = BatchSize(LIMITS)
    first = batch_size.size
    batch_size.note(first - 1, 0.01)
    assert batch_size.size == first


def test_a_slow_effect_is_named_until_all_that_was_read_is_done_quickly() -> None:
    batch_size = grown()
    batch_size.note(batch_size.size, 2 * batch_size.target_s)
    assert batch_size.trouble.startswith("its effect is slow: 2000 events, took 5.0 s")
    batch_size.note_batch(batch_size.target_s)
    assert batch_size.trouble
    batch_size.note_batch(batch_size.target_s / 10)
    assert batch_size.trouble == ""
