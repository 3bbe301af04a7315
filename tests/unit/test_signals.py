"""What signals do to a process that drains, and what they leave as it was."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from brewctl.lifecycle import wait_until
from brewctl.signals import interrupts_held, stop_on_signals

each_signal = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


# Two phases of a role: `working` until the first signal, `draining` after it, for ever if told so.
# A signal that comes just before the main thread falls asleep is seen when it wakes, and nothing
# tells that it sleeps: so each phase gives it a moment before it is announced.
ROLE = """
import signal, sys, threading
from brewctl.lifecycle import run_together, stop_at_end_of_input
from brewctl.signals import stop_on_signals

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
    ("first", "second", "last", "says"),
    [
        (signal.SIGINT, signal.SIGINT, (), ""),
        (signal.SIGHUP, signal.SIGTERM, (), ""),
        (signal.SIGTERM, signal.SIGTERM, ("last",), "left\n"),
    ],
)
def test_the_second_signal_quits_at_once(
    first: signal.Signals, second: signal.Signals, last: tuple[str, ...], says: str
) -> None:
    """After a last act, where there is one."""
    with role("stuck", *last) as process:
        os.kill(process.pid, first)
        wait_for_line(process, "draining")
        os.kill(process.pid, second)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, says, "")


# A signal after a stop from elsewhere is the first: a service manager signals all of a service's processes, and one
# of those tells the others too.
AFTER_A_STOP = """
import signal
from brewctl.signals import stop_on_signals
with stop_on_signals() as stop:
    stop.set()
    signal.raise_signal(signal.SIGTERM)
    print("draining", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("draining still", flush=True)
"""


# A handler runs between any two steps of the main thread, also within a wait for the event that it sets.
WHILE_LOCKED = """
import signal
from brewctl.signals import stop_on_signals
with stop_on_signals() as stop:
    with stop._cond:
        signal.raise_signal(signal.SIGTERM)
        print("handled", flush=True)
    print(stop.wait(20), flush=True)
"""


# Signals are heard while the main thread is in a call that none interrupts, as the look-up of a host's name. Here it
# is a C function that never returns.
IN_A_CALL = """
import ctypes, os, signal, threading
from brewctl.signals import stop_on_signals

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


# An interrupt that is held is the first signal after the block.
HELD = """
import os, signal
from brewctl.signals import interrupts_held, stop_on_signals
with stop_on_signals() as stop:
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGTERM)
        print("held", stop.wait(0.2), flush=True)
    print("draining", stop.wait(20), flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("draining still", flush=True)
"""


@pytest.mark.parametrize(
    ("program", "code", "output"),
    [
        (AFTER_A_STOP, 130, "draining\n"),
        (WHILE_LOCKED, 0, "handled\nTrue\n"),
        (IN_A_CALL, 130, "draining\n"),
        (HELD, 130, "held False\ndraining True\n"),
    ],
    ids=["after a stop", "while locked", "in a call", "held"],
)
def test_a_signal_at_an_odd_moment(program: str, code: int, output: str) -> None:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, output, "")


def test_the_wake_up_descriptor_comes_back() -> None:
    with stop_on_signals():
        pass
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in {thread.name for thread in threading.enumerate()}


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
