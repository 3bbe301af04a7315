"""Retention that is cut off between its steps, that meets another run, or a row that is committed late."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from brewctl.delivery import database
from brewctl.delivery.retention import look, retention
from brewctl.delivery.retention.retention import Run
from brewctl.delivery.retention.turn import take_turn
from brewctl.lifecycle import wait_until
from brewctl.verify import verify
from tests.conftest import begin
from tests.integration.chain_tools import Chain, broken, open_chain
from tests.integration.retention_tools import attached, fill, left, remove_records, run, small_partitions, state

_LATE_S = 60.0


@pytest.fixture
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A chain of which the first partition may go."""
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        small_partitions(chain.rig.connection)
        fill(chain, 12)
        remove_records(chain)
        yield chain


class CutOffError(Exception):
    """The process is killed here."""


def all_is_done(chain: Chain, below: int) -> None:
    """What is below the watermark is gone, nothing is half-done, and verify finds nothing wrong."""
    connection = chain.rig.connection
    assert attached(connection, "outbox")[0] == f"outbox_p{below}"
    assert attached(connection, "processed_events")[0] == f"processed_events_p{below}"
    assert sorted(left(connection)) == sorted(
        [*attached(connection, "outbox"), *attached(connection, "processed_events")]
    )
    noted = state(connection)
    assert (noted["dropped_below"], noted["dropping"], noted["dropped_created"]) == (below, None, below - 1)
    assert broken(verify(chain.rig.settings, late_s=0)) == {}


# The watermark, detaching and dropping the outbox's partition, the home, detaching and dropping its own.
STEPS = 6


def test_a_run_goes_on_where_the_one_before_was_cut_off(chain: Chain) -> None:
    """Before each of its steps."""
    for step in range(STEPS):
        with pytest.MonkeyPatch.context() as patch:
            cut_off(patch, step)
            with pytest.raises(CutOffError):
                run(chain.rig.settings)
        assert broken(verify(chain.rig.settings, late_s=0)) == {}
        run(chain.rig.settings)
        all_is_done(chain, below=10 * (step + 1))
        fill(chain, 10)
        remove_records(chain)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, STEPS)
        run(chain.rig.settings)  # there is no further step
    all_is_done(chain, below=10 * (STEPS + 1))


def cut_off(patch: pytest.MonkeyPatch, step: int) -> None:
    """End a run before a step of it."""
    steps = 0

    def counted(name: str) -> None:
        original = getattr(Run, name)

        def attempt(self: Run, *arguments: Any) -> Any:
            nonlocal steps
            if steps == step:
                raise CutOffError
            steps += 1
            return original(self, *arguments)

        patch.setattr(Run, name, attempt)

    for name in ("_remove_outbox", "_detach", "_drop", "_do_home"):
        counted(name)


def test_a_run_that_is_killed_while_it_detaches_is_finished_by_the_next(chain: Chain) -> None:
    settings = chain.rig.settings
    with psycopg.connect(settings.database_url) as reader:
        reader.execute("SELECT count(*) FROM outbox")  # a long report: the partition can't go before it ends
        killed = begin("db", "retention", env=chain.rig.env)
        detaching = "SELECT true FROM pg_inherits WHERE inhdetachpending"
        wait_until("its detachment", lambda: bool(chain.execute(detaching).fetchall()), timeout_s=_LATE_S)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert state(chain.rig.connection)["dropping"] == "outbox_p0"
        # Whoever comes next waits until its turn is over, and says so.
        busy = chain.rig.brewctl("db", "retention")
        assert busy.returncode == 1
        assert "another retention run works: " in busy.stderr
        assert "it ends by itself; where it was killed, in " in busy.stderr
        assert broken(verify(settings, late_s=0)) == {}
    chain.execute("UPDATE retention SET ends_at = clock_timestamp()")  # as time does
    done = chain.rig.brewctl("db", "retention")
    assert done.returncode == 0, done.stderr
    assert "finishes what an earlier run began with outbox_p0" in done.stderr
    all_is_done(chain, below=10)


def test_of_two_loops_one_works_and_the_other_waits_its_turn(chain: Chain) -> None:
    with database.connect(chain.rig.settings) as connection:
        with take_turn(connection):
            waiting = begin("db", "retention", "--every", "0.1", env=chain.rig.env)
            assert waiting.stdout is not None
            assert waiting.stderr is not None
            try:
                assert "ready: one run every 0.1 s" in waiting.stdout.readline()
                assert "another retention run works" in waiting.stderr.readline()
                assert "outbox_p0" in attached(chain.rig.connection, "outbox")
            except BaseException:
                waiting.kill()
                raise
        try:
            wait_until(
                "the drop", lambda: "outbox_p0" not in attached(chain.rig.connection, "outbox"), timeout_s=_LATE_S
            )
            waiting.send_signal(signal.SIGTERM)
            waiting.communicate(timeout=_LATE_S)
        finally:
            waiting.kill()
    assert waiting.returncode == 0
    wait_until("its turn to be free", lambda: state(chain.rig.connection)["node_id"] is None, timeout_s=_LATE_S)


def test_a_row_that_is_committed_late_keeps_its_partition(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction took an id before the partition was full, and is not seen before the partition is detached."""
    monkeypatch.setattr(look.Evidence, "_writer", lambda _self, _partition: None)
    chain.execute("DELETE FROM outbox WHERE id = 4")
    chain.execute("DELETE FROM orders o WHERE NOT EXISTS (SELECT FROM outbox WHERE aggregate_id = 'order-' || o.id)")
    late = psycopg.connect(chain.rig.settings.database_url)
    insert = "INSERT INTO outbox (id, aggregate_id, topic, payload) OVERRIDING SYSTEM VALUE VALUES (4, 'late', %s, 'x')"
    late.execute(insert, [chain.rig.settings.topic])
    found: list[retention.RetentionOutcome] = []
    thread = threading.Thread(target=lambda: found.append(run(chain.rig.settings)))
    thread.start()
    try:
        pending = "SELECT true FROM pg_inherits WHERE inhdetachpending"
        wait_until("its detachment", lambda: bool(chain.execute(pending).fetchall()), timeout_s=_LATE_S)
    finally:
        late.commit()
        late.close()
        thread.join(_LATE_S)
    (outcome,) = found
    assert outcome.dropped == []
    assert outcome.kept is not None
    assert outcome.kept.reasons[0].text == "1 row is not published yet"
    assert attached(chain.rig.connection, "outbox")[0] == "outbox_p0"
    assert chain.execute("SELECT count(*) FROM outbox WHERE id = 4").fetchone() == (1,)
    noted = state(chain.rig.connection)
    assert (noted["dropped_below"], noted["dropped_created"], noted["dropping"]) == (0, 0, None)
    # Once it is published, as any other row, the partition goes.
    chain.execute("DELETE FROM outbox WHERE id = 4")
    assert run(chain.rig.settings).dropped == ["outbox_p0", "processed_events_p0"]
