"""How processes run several things, how they end, and how they wait."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from brewctl.errors import BrewError, DrainTimeoutError
from brewctl.lifecycle import Backoff, interrupts_held, run_together, stop_on_signals, wait_until, wake_at

each_signal = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


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


def test_the_actor_that_does_not_stop_is_named(stop: threading.Event) -> None:
    release = threading.Event()
    actors = {"test-quick": lambda: None, "test-stuck": release.wait, "test-obeys": stop.wait}
    try:
        with pytest.raises(DrainTimeoutError) as late:
            run_together(actors, stop, drain_timeout_s=0.5)  # type: ignore[arg-type]
    finally:
        release.set()
    assert late.value.message == "test-stuck did not stop within 0.5 s"
    wait_until("the end of the stuck actor", lambda: ended({"test-stuck"}), timeout_s=60, every_s=0.01)


def test_all_that_do_not_stop_are_named(stop: threading.Event) -> None:
    release = threading.Event()
    actors = {"test-quick": lambda: None, "test-one": release.wait, "test-two": release.wait}
    try:
        with pytest.raises(DrainTimeoutError, match=r"^test-one and test-two did not stop"):
            run_together(actors, stop, drain_timeout_s=0.05)  # type: ignore[arg-type]
    finally:
        release.set()
    wait_until("their end", lambda: ended({"test-one", "test-two"}), timeout_s=60, every_s=0.01)


# Two phases of a role: `working` until the first signal, `draining` after it, for ever if told so.
# A signal that comes just before the main thread falls asleep is seen when it wakes, and nothing
# tells that it sleeps: so each phase gives it a moment before it is announced.
ROLE = """
import signal, sys, threading
from brewctl.lifecycle import run_together, stop_at_end_of_input, stop_on_signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup

def last():
    if "last" in sys.argv:
        print("left", flush=True)

def announce(phase):
    threading.Event().wait(0.2)
    print(phase, flush=True)

with stop_on_signals(last) as stop:
    if "input" in sys.argv:
        stop_at_end_of_input(stop)
    def role():
        announce("working")
        stop.wait()
        announce("draining")
        if "stuck" in sys.argv:
            threading.Event().wait()
    run_together({"role": role}, stop, drain_timeout_s=600)
print("drained", flush=True)
"""


@contextmanager
def role(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that is at work."""
    command = [sys.executable, "-c", ROLE, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for_line(process, "working")
            yield process
        finally:
            process.kill()


def wait_for_line(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@each_signal
def test_the_first_signal_drains(number: signal.Signals) -> None:
    with role() as process:
        os.kill(process.pid, number)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "draining\ndrained\n", "")


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)],
)
def test_the_second_signal_quits_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with role("stuck") as process:
        os.kill(process.pid, first)
        wait_for_line(process, "draining")
        os.kill(process.pid, second)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "", "")


def test_the_second_signal_leaves_after_a_last_act() -> None:
    with role("stuck", "last") as process:
        os.kill(process.pid, signal.SIGTERM)
        wait_for_line(process, "draining")
        os.kill(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "left\n", "")


def test_a_signal_after_a_stop_from_elsewhere_is_the_first() -> None:
    """A service manager signals all of a service's processes, and one of those tells the others too."""
    program = """
import signal
from brewctl.lifecycle import stop_on_signals
with stop_on_signals() as stop:
    stop.set()
    signal.raise_signal(signal.SIGTERM)
    print("draining", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("draining still", flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "draining\n", "")


def test_a_signal_that_comes_while_the_event_is_locked_waits_for_nothing() -> None:
    """A handler runs between any two steps of the main thread: also within a wait for the event that it sets."""
    program = """
import signal
from brewctl.lifecycle import stop_on_signals
with stop_on_signals() as stop:
    with stop._cond:
        signal.raise_signal(signal.SIGTERM)
        print("handled", flush=True)
    print(stop.wait(20), flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "handled\nTrue\n", "")


def test_signals_are_heard_while_the_main_thread_is_in_a_call_that_no_signal_interrupts() -> None:
    """As in the look-up of a host's name; here a C function that never returns."""
    program = """
import ctypes, os, signal, threading
from brewctl.lifecycle import stop_on_signals

def tell(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    stop.wait()
    print("draining", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

with stop_on_signals() as stop:
    mutex, libc = ctypes.create_string_buffer(128), ctypes.CDLL(None)
    threading.Thread(target=tell, args=(stop,), daemon=True).start()
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # waits for itself
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "draining\n", "")


def test_an_interrupt_that_is_held_is_the_first_signal_after_the_block() -> None:
    program = """
import os, signal
from brewctl.lifecycle import interrupts_held, stop_on_signals
with stop_on_signals() as stop:
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGTERM)
        print("held", stop.wait(0.2), flush=True)
    print("draining", stop.wait(20), flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("draining still", flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "held False\ndraining True\n", "")


def test_the_wake_up_descriptor_comes_back() -> None:
    with stop_on_signals():
        pass
    assert signal.set_wakeup_fd(-1) == -1
    assert ended({"signals"})


def test_the_end_of_the_input_drains() -> None:
    with role("input") as process:
        assert process.stdin is not None
        process.stdin.write("nothing that matters\n")
        process.stdin.flush()
        assert process.poll() is None
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "draining\ndrained\n", "")


@each_signal
def test_a_signal_sets_the_event_and_old_handlers_come_back(number: signal.Signals) -> None:
    heard: list[int] = []
    original = signal.signal(number, lambda received, _frame: heard.append(received))
    try:
        mine = signal.getsignal(number)
        with stop_on_signals() as stop:
            assert signal.getsignal(number) is not mine
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.wait(10)
        assert heard == []
        assert signal.getsignal(number) is mine
        os.kill(os.getpid(), number)
        wait_until("the signal", lambda: heard == [number], timeout_s=60, every_s=0.01)
    finally:
        signal.signal(number, original)


def test_a_hangup_that_is_ignored_stays_so() -> None:
    """As under nohup."""
    original = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, original)


@each_signal
def test_old_handlers_come_back_after_an_exception_too(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(ValueError, match="broken"), stop_on_signals():
        raise ValueError("broken")
    assert signal.getsignal(number) is before


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


def test_an_interrupt_waits_for_what_must_not_be_torn() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # the signal is handled here at the latest
            done.append("all")

    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert done == ["all"]
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)


def test_no_interrupt_no_harm_and_other_threads_have_none() -> None:
    seen = []

    def elsewhere() -> None:
        with interrupts_held():
            seen.append(threading.current_thread().name)

    with interrupts_held():
        thread = threading.Thread(target=elsewhere, name="elsewhere")
        thread.start()
        thread.join()
    assert seen == ["elsewhere"]


class _Sleeper:
    def __init__(self) -> None:
        self.woken = threading.Event()

    def wakeup(self) -> None:
        self.woken.set()


def test_an_event_wakes_everything_that_sleeps_by_other_means_by_one_thread() -> None:
    event, sleepers = threading.Event(), [_Sleeper() for _ in range(3)]
    before = threading.active_count()
    for each in sleepers:
        wake_at(event, each)
    assert threading.active_count() <= before + 1
    assert not any(each.woken.is_set() for each in sleepers)
    event.set()
    assert all(each.woken.wait(30) for each in sleepers)


def test_what_falls_asleep_after_the_event_is_woken_at_once() -> None:
    event, early, late = threading.Event(), _Sleeper(), _Sleeper()
    wake_at(event, early)
    event.set()
    assert early.woken.wait(30)
    wake_at(event, late)
    assert late.woken.is_set()
