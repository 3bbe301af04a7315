"""/livez and /readyz: threads that move or not, and checks that many probes ask at once."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from brewctl.lifecycle import wait_until
from brewctl.probes import heartbeat
from brewctl.probes.health import Health, Readiness
from brewctl.probes.heartbeat import Loop
from brewctl.probes.pages import Answer


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of other tests of this process are none of ours."""
    monkeypatch.setattr(heartbeat, "_loops", type(heartbeat._loops)())
    monkeypatch.setattr(heartbeat, "_dead", [])


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def said(answer: Answer) -> tuple[int, list[str]]:
    return answer.status, answer.body.decode().splitlines()


def found(text: str = "", *, ready: bool = True) -> Iterator[Readiness]:
    yield Readiness(ready, text)


def test_a_role_is_ready_once_it_is_up_and_until_it_drains(stop: threading.Event) -> None:
    health = Health(stop)
    assert said(health.readyz()) == (503, ["not ready", "NO starting"])
    assert said(health.livez())[0] == 200
    health.waits("postgres is away")
    assert said(health.readyz()) == (503, ["not ready", "NO starting; it waits: postgres is away"])
    health.up(lambda: found("postgres answers"))
    assert said(health.readyz()) == (200, ["ready", "ok postgres answers"])
    stop.set()
    status, (verdict, line) = said(health.readyz())
    assert (status, verdict) == (503, "not ready")
    assert line.startswith("NO it drains")


def test_one_check_that_fails_is_enough_and_all_are_named(stop: threading.Event) -> None:
    health = Health(stop)
    health.up(lambda: found("one"), lambda: found("two", ready=False), lambda: found("three"))
    assert said(health.readyz()) == (503, ["not ready", "ok one", "NO two", "ok three"])


def test_a_storm_of_probes_costs_one_look(stop: threading.Event) -> None:
    looks: list[None] = []
    begun, going = threading.Event(), threading.Event()

    def look() -> Iterator[Readiness]:
        looks.append(None)
        begun.set()
        assert going.wait(20)
        yield Readiness(ready=True, text="well")

    health = Health(stop, fresh_s=600)
    health.up(look)
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(health.readyz())) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    assert said(health.livez())[0] == 200, "the other page waits for no server"
    going.set()
    for thread in threads:
        thread.join(20)
    assert [answer.status for answer in answers] == [200] * 20
    assert len(looks) == 1


def test_what_was_found_is_looked_at_again_after_a_while(stop: threading.Event) -> None:
    ready = [True]
    health = Health(stop, fresh_s=0.05)
    health.up(lambda: found(ready=ready[0]))
    assert said(health.readyz())[0] == 200
    ready[0] = False
    wait_until("the change", lambda: health.readyz().status == 503, timeout_s=20, every_s=0.01)


def test_a_thread_that_does_not_move_is_named(stop: threading.Event) -> None:
    health, over = Health(stop), threading.Event()

    def turn(loop: Loop) -> None:
        with loop:
            over.wait(20)

    stuck, fine = Loop("writer", within_s=0.05), Loop("watch", within_s=600)
    threads = [threading.Thread(target=turn, args=(loop,)) for loop in (stuck, fine)]
    for thread in threads:
        thread.start()
    wait_until("503", lambda: health.livez().status == 503, timeout_s=20, every_s=0.01)
    status, (verdict, line, *others) = said(health.livez())
    assert (status, verdict, others) == (503, "stuck", [])
    assert line.startswith("NO writer has not moved for ")
    stuck.beat()
    over.set()
    for thread in threads:
        thread.join(20)
    assert said(health.livez()) == (200, ["alive"]), "threads that have ended as they should"


def test_a_loop_that_rests_may_do_so_for_ever(stop: threading.Event) -> None:
    loop = Loop("inbox", within_s=0.0)
    loop.beat()
    time.sleep(0.001)
    assert Health(stop).livez().status == 503
    loop.rest()
    assert said(Health(stop).livez()) == (200, ["alive"])


def test_a_thread_that_ended_by_an_error_is_named_for_good(stop: threading.Event) -> None:
    def fail() -> None:
        with contextlib.suppress(RuntimeError), Loop("publisher", within_s=600):
            raise RuntimeError

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert said(Health(stop).livez()) == (503, ["stuck", "NO publisher has ended by an error"])


def test_a_loop_of_something_that_is_gone_is_forgotten(stop: threading.Event) -> None:
    loop = Loop("writer", within_s=0.0)
    loop.beat()
    del loop
    assert said(Health(stop).livez()) == (200, ["alive"])
