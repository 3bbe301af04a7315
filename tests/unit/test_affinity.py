"""One core for a busy process: which one, and that its threads really are there."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from brewctl import affinity
from brewctl.lifecycle import wait_until

several_cores = pytest.mark.skipif(
    len(affinity.allowed()) <= 1 or not Path("/proc/stat").exists(), reason="there is no core to choose"
)


@pytest.mark.parametrize(
    ("loads", "own", "chosen", "core"),
    [
        # Idle: anywhere, whatever the others do.
        ({0: 0.9, 1: 0.1}, 0.0, None, None),
        ({0: 0.9, 1: 0.1}, 0.45, None, None),
        # Busy: where there is the most room.
        ({0: 0.9, 1: 0.1}, 0.55, None, 1),
        ({0: 0.1, 1: 0.9}, 0.55, None, 0),
        ({0: 0.8, 1: 0.7, 2: 0.2, 3: 0.6}, 0.9, None, 2),
        # It stays, unless another core is a good deal freer.
        ({0: 1.0, 1: 0.2}, 0.6, 0, 0),
        ({0: 1.0, 1: 0.15}, 0.6, 0, 0),
        ({0: 1.0, 1: 0.05}, 0.6, 0, 1),
        ({0: 1.0, 1: 0.5, 2: 0.0}, 0.6, 0, 2),
        # What it does itself is no crowd: neither of all of it, nor where the clocks differ a little.
        ({0: 1.0, 1: 0.0}, 1.0, 0, 0),
        ({0: 0.95, 1: 0.0}, 1.0, 0, 0),
        ({0: 1.0, 1: 1.0}, 0.5, 0, 0),
        # Busy from a half on, idle from a quarter down: between them it is what it was.
        ({0: 0.4, 1: 0.4}, 0.3, None, None),
        ({0: 0.4, 1: 0.4}, 0.3, 0, 0),
        ({0: 0.4, 1: 0.4}, 0.3, 1, 1),
        ({0: 0.4, 1: 0.4}, 0.2, 1, None),
    ],
)
def test_which_core(loads: dict[int, float], own: float, chosen: int | None, core: int | None) -> None:
    before = dict(loads)
    assert affinity.choose(loads, own=own, chosen=chosen) == core
    assert loads == before


@several_cores
def test_busy_ticks_grow_on_the_core_that_works() -> None:
    cores = affinity.allowed()
    core = max(cores)
    os.sched_setaffinity(0, {core})
    try:
        before, until = affinity.busy_ticks(), time.thread_time() + 0.3
        while time.thread_time() < until:
            pass
        after = affinity.busy_ticks()
    finally:
        os.sched_setaffinity(0, cores)
    assert cores <= before.keys() == after.keys()
    # The kernel counts in ticks, and whoever shares the core adds to them.
    assert (after[core] - before[core]) / os.sysconf("SC_CLK_TCK") > 0.15


PROGRAM = """
import sys, threading
from brewctl import affinity
stop, end = threading.Event(), threading.Event()

def burn():
    while not end.is_set():
        sum(range(1000))

def idle():
    end.wait()

keeper = threading.Thread(target=affinity.keep_to_one_core, args=(stop,))
threads = [keeper, threading.Thread(target=idle), *(threading.Thread(target=burn) for _ in range(int(sys.argv[1])))]
for thread in threads:
    thread.start()
print("ready", flush=True)
sys.stdin.readline()
stop.set()
keeper.join()
print("free", flush=True)
sys.stdin.readline()
end.set()
"""


@contextmanager
def a_process(burning: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that keeps to one core until a line comes, and ends at the next one."""
    command = [sys.executable, "-c", PROGRAM, str(burning)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            hear(process, "ready")
            yield process
        finally:
            process.kill()


def hear(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdout
    assert process.stdout.readline() == f"{line}\n"


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def cores_of(process: "subprocess.Popen[str]") -> list[set[int]]:
    """Where each of its threads may run, as the kernel says."""
    return [
        listed(line.partition(":")[2].strip())
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for line in (task / "status").read_text("ascii").splitlines()
        if line.startswith("Cpus_allowed_list:")
    ]


def policies_of(process: "subprocess.Popen[str]") -> set[int]:
    return {os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{process.pid}/task").iterdir()}


def policies_of_us() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
            found.add(os.sched_getscheduler(int(task.name)))
    return found


def listed(text: str) -> set[int]:
    """Cores from the kernel's list of them, such as 0-2,5."""
    ends = [part.partition("-") for part in text.split(",")]
    return {core for first, _, last in ends for core in range(int(first), int(last or first) + 1)}


@several_cores
def test_all_threads_of_a_busy_process_share_a_core_until_the_stop() -> None:
    with a_process(burning=1) as process:

        def together() -> bool:
            cores = cores_of(process)
            return len(cores) == 4 and len(cores[0]) == 1 and all(each == cores[0] for each in cores)

        wait_until("one core for all threads", together, timeout_s=60)
        wait_until("batch jobs", lambda: policies_of(process) == {os.SCHED_BATCH}, timeout_s=20)
        assert cores_of(process)[0] <= affinity.allowed()
        tell(process)
        hear(process, "free")
        assert all(each == affinity.allowed() for each in cores_of(process)), "and it burns still"
        assert policies_of(process) == {os.SCHED_OTHER}
        tell(process)
        assert process.wait(20) == 0


@several_cores
def test_an_idle_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[object] = []
    looks = threading.Semaphore(0)
    choose = affinity.choose

    def choose_and_say(*args: object, **kwargs: object) -> int | None:
        looks.release()
        return choose(*args, **(kwargs | {"own": 0.0}))  # type: ignore[arg-type]

    monkeypatch.setattr(affinity, "_bind", lambda *where: bound.append(where))
    monkeypatch.setattr(affinity, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(affinity, "choose", choose_and_say)
    stop = threading.Event()
    keeper = threading.Thread(target=affinity.keep_to_one_core, args=(stop,))
    keeper.start()
    for _ in range(3):
        assert looks.acquire(timeout=20)
    assert bound == []
    stop.set()
    keeper.join(20)
    assert not keeper.is_alive()


@several_cores
def test_cores_that_somebody_else_sets_are_kept_to() -> None:
    with a_process(burning=1) as process:
        wait_until("one core", lambda: {len(each) for each in cores_of(process)} == {1}, timeout_s=60)
        # As `taskset -ap` does, and a smaller cpuset.
        (ours,) = cores_of(process)[0]
        theirs = min(affinity.allowed() - {ours})
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {theirs})
        wait_until("normal jobs", lambda: policies_of(process) == {os.SCHED_OTHER}, timeout_s=20)
        tell(process)
        hear(process, "free")
        assert all(each == {theirs} for each in cores_of(process))
        tell(process)
        assert process.wait(20) == 0


def keeps_waiting(monkeypatch: pytest.MonkeyPatch, passed: Callable[[], bool]) -> None:
    """Run it beside a busy thread until `passed`: it returns at its stop, not before."""
    monkeypatch.setattr(affinity, "_LOOK_EVERY_S", 0.01)
    over, stop = threading.Event(), threading.Event()
    keeper = threading.Thread(target=affinity.keep_to_one_core, args=(stop,))

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    burning = threading.Thread(target=burn)
    burning.start()
    keeper.start()
    try:
        wait_until("it", passed, timeout_s=20, every_s=0.01)
        assert keeper.is_alive()
    finally:
        over.set()
        stop.set()
        keeper.join(20)
    assert not keeper.is_alive()


@several_cores
@pytest.mark.parametrize("content", [None, "cpu0 1 2 three 4 5 6 7 8\n", "cpu0 1 2\n", "cpux 1 2 3 4 5 6 7 8\n"])
def test_a_proc_stat_that_can_not_be_read_ends_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, content: str | None
) -> None:
    stat = tmp_path / "stat"
    stat.mkdir() if content is None else stat.write_text(content)
    monkeypatch.setattr(affinity, "_STAT", stat)
    monkeypatch.setattr(affinity, "_bind", lambda *_where: pytest.fail("bound"))
    caplog.set_level(logging.INFO, affinity.__name__)
    keeps_waiting(monkeypatch, lambda: len(caplog.records) == 1)
    (said,) = caplog.messages
    assert said.startswith("affinity given up: ")


@several_cores
def test_a_system_that_refuses_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[object] = []

    def refuse(*where: object) -> None:
        asked.append(where)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr(affinity, "choose", lambda loads, **_: min(loads))
    caplog.set_level(logging.INFO, affinity.__name__)
    keeps_waiting(monkeypatch, lambda: len(caplog.records) == 1)
    assert len(asked) == 2, "to bind, and to free"
    assert policies_of_us() == {os.SCHED_OTHER}


@several_cores
@pytest.mark.parametrize("shift", [0, 1000])
def test_figures_of_other_cores_are_no_ground_to_choose_on(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    """Containers may show cores by other numbers, or say that none has worked."""
    looks: list[None] = []

    def elsewhere() -> dict[int, int]:
        looks.append(None)
        return {core + shift: 5 for core in affinity.allowed()}

    monkeypatch.setattr(affinity, "busy_ticks", elsewhere)
    monkeypatch.setattr(affinity, "choose", lambda *_args, **_kwargs: pytest.fail("chosen"))
    keeps_waiting(monkeypatch, lambda: len(looks) > 20)


@pytest.mark.parametrize("cores", [{0}, set()])
def test_without_a_choice_it_waits_for_the_stop(monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
    """It ends at its stop, whatever it does until then."""
    monkeypatch.setattr(affinity, "allowed", lambda: cores)
    monkeypatch.setattr(affinity, "_bind", lambda *_where: pytest.fail("bound"))

    class Asked(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            began.set()
            return super().wait(timeout)

    began, stop = threading.Event(), Asked()
    keeper = threading.Thread(target=affinity.keep_to_one_core, args=(stop,))
    keeper.start()
    assert began.wait(20)
    assert keeper.is_alive()
    stop.set()
    keeper.join(20)
    assert not keeper.is_alive()


def test_where_the_system_does_not_say_there_is_no_core_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert affinity.allowed() == set()
