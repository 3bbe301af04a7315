"""How processes run several things, how they end, and how they wait."""

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from brewctl.errors import BrewError, DrainTimeoutError
from brewctl.lifecycle import Backoff, run_together, wait_until, wake_at


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """A stop that comes in the end: where nobody sets it, the test fails and doesn't hang."""
    stop = threading.Event()
    guard = threading.Timer(20, stop.set)
    guard.start()
    yield stop
    in_time = not guard.finished.is_set()
    guard.cancel()
    guard.join()
    assert in_time


def ended(names: set[str]) -> bool:
    return not names & {thread.name for thread in threading.enumerate()}


def test_the_first_to_return_stops_the_rest(stop: threading.Event) -> None:
    done: list[str] = []

    def waits(name: str) -> Callable[[], None]:
        def actor() -> None:
            stop.wait()
            done.append(name)

        return actor

    run_together(
        {"test-first": lambda: done.append("first"), "test-a": waits("a"), "test-b": waits("b")},
        stop,
        drain_timeout_s=30,
    )
    assert stop.is_set()
    assert done[0] == "first"
    assert sorted(done[1:]) == ["a", "b"]
    assert ended({"test-first", "test-a", "test-b"})


def test_a_stop_from_outside_ends_all(stop: threading.Event) -> None:
    running = threading.Barrier(3)

    def actor() -> None:
        running.wait()
        stop.wait()

    def outside() -> None:
        running.wait()
        stop.set()

    caller = threading.Thread(target=outside)
    caller.start()
    run_together({"test-a": actor, "test-b": actor}, stop, drain_timeout_s=30)
    caller.join()
    assert ended({"test-a", "test-b"})


def test_the_first_exception_is_raised_when_all_have_ended(stop: threading.Event) -> None:
    def fails_later() -> None:
        stop.wait()
        raise ValueError("second")

    def fails() -> None:
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        run_together({"test-later": fails_later, "test-fails": fails}, stop, drain_timeout_s=30)
    assert stop.is_set()
    assert ended({"test-later", "test-fails"})


def test_an_exit_in_an_actor_reaches_the_caller(stop: threading.Event) -> None:
    def leaves() -> None:
        sys.exit(7)

    with pytest.raises(SystemExit, match="7"):
        run_together({"test-leaves": leaves}, stop, drain_timeout_s=30)


def test_all_that_do_not_stop_are_named(stop: threading.Event) -> None:
    release = threading.Event()
    actors = {"test-quick": lambda: None, "test-one": release.wait, "test-two": release.wait, "test-obeys": stop.wait}
    try:
        with pytest.raises(DrainTimeoutError, match=r"^test-one and test-two did not stop within 0.5 s"):
            run_together(actors, stop, drain_timeout_s=0.5)  # type: ignore[arg-type]
    finally:
        release.set()
    wait_until("their end", lambda: ended({"test-one", "test-two"}), timeout_s=60, every_s=0.01)


class Recorder(threading.Event):
    """A stop that nobody waits for: it keeps how long each wait would have been."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return self.is_set()


def test_pauses_grow_up_to_their_longest() -> None:
    stop = Recorder()
    backoff = Backoff(stop, first_s=0.1, longest_s=2.0)
    for _ in range(100):
        backoff.pause()
    for tries, waited in enumerate(stop.waits):
        ceiling = min(2.0, 0.1 * 2**tries)
        assert ceiling / 2 <= waited <= ceiling


def test_pauses_differ() -> None:
    """Replicas that failed together don't come back together."""
    stop = Recorder()
    backoff = Backoff(stop, first_s=1.0, longest_s=1.0)
    for _ in range(20):
        backoff.pause()
    assert len(set(stop.waits)) > 1


def test_after_a_success_the_next_pause_is_short_and_said() -> None:
    stop = Recorder()
    backoff = Backoff(stop, first_s=0.1, longest_s=100.0)
    for _ in range(9):
        backoff.pause()
    assert stop.waits[-1] > 1
    backoff.reset()
    assert backoff.pause()
    assert stop.waits[-1] <= 0.1


def test_tries_that_are_powers_of_two_are_said() -> None:
    backoff = Backoff(Recorder())
    assert [tries for tries in range(1, 70) if backoff.pause()] == [1, 2, 4, 8, 16, 32, 64]


def test_a_failure_long_after_the_last_one_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may have noted a success between two outages: the second is not silent."""
    backoff = Backoff(Recorder())
    for _ in range(5):
        backoff.pause()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 70)
    assert backoff.pause()


def test_a_pause_ends_with_a_stop() -> None:
    stop = threading.Event()
    stop.set()
    assert Backoff(stop, first_s=3600, longest_s=3600).pause()


def test_wait_until_asks_until_it_holds() -> None:
    answers = iter([False, False, True])
    wait_until("the third answer", lambda: next(answers), timeout_s=30, every_s=0)
    assert next(answers, "none left") == "none left"


def test_wait_until_names_what_is_missing() -> None:
    with pytest.raises(TimeoutError, match=r"^the moon: still missing after 0.01 s$"):
        wait_until("the moon", lambda: False, timeout_s=0.01, every_s=0.001)


def test_wait_until_does_not_hide_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until("nothing", lambda: bool(1 // 0), timeout_s=30)


def test_a_failure_beside_a_stuck_actor_names_both() -> None:
    release = threading.Event()

    def fail() -> None:
        raise BrewError("broken")

    try:
        with pytest.raises(DrainTimeoutError, match=r"^broken; test-stuck did not stop within 0.05 s"):
            run_together({"test-stuck": release.wait, "fail": fail}, threading.Event(), drain_timeout_s=0.05)  # type: ignore[dict-item]
    finally:
        release.set()


class Sleeping:
    def __init__(self) -> None:
        self.woken = threading.Event()

    def wakeup(self) -> None:
        self.woken.set()


def test_an_event_wakes_everything_that_sleeps_by_other_means_by_one_thread() -> None:
    event, sleepers = threading.Event(), [Sleeping() for _ in range(3)]
    before = threading.active_count()
    for each in sleepers:
        wake_at(event, each)
    assert threading.active_count() <= before + 1
    assert not any(each.woken.is_set() for each in sleepers)
    event.set()
    assert all(each.woken.wait(30) for each in sleepers)


def test_what_falls_asleep_after_the_event_is_woken_at_once() -> None:
    event, early, late = threading.Event(), Sleeping(), Sleeping()
    wake_at(event, early)
    event.set()
    assert early.woken.wait(30)
    wake_at(event, late)
    assert late.woken.is_set()
