"""The order of an aggregate's rows, with many publishers, writers that go on, and a Kafka that fails now and then."""

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from brewctl.delivery.broker import HeldError, Outcome, Place, Record, UnavailableError
from tests.conftest import Rig, limited
from tests.integration.outbox_tools import unpublished
from tests.integration.scan_tools import Instant, Reading, fill, reading


class Unreliable(Instant):
    """Takes most records, holds back what must not overtake one that it did not take, and fails now and then."""

    _lock = threading.Lock()

    def __init__(self, taken: list[tuple[str, int]], seed: int) -> None:
        super().__init__()
        self._taken = taken
        self._random = random.Random(seed)

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s > 0
        stopped: set[bytes | None] = set()
        outcomes: list[Outcome] = []
        for record in records:
            if record.key in stopped:
                outcomes.append(HeldError("behind another"))
            elif self._random.random() < 0.02:
                stopped.add(record.key)
                outcomes.append(UnavailableError("away"))
            else:
                with self._lock:
                    self._taken.append(((record.key or b"").decode(), int(dict(record.headers)["outbox-id"])))
                outcomes.append(Place(0, 0))
        time.sleep(self._random.uniform(0, 0.003))
        return outcomes


def test_no_row_overtakes_another_of_its_aggregate_with_many_publishers(rig: Rig) -> None:
    """Small batches, so that the rows of an aggregate are spread over many; writers that go on; failures."""
    settings = limited(rig.settings, publish_rows_first=7, publish_rows=20)
    fill(rig, 600, "'a-' || (n * 7919) % 9")
    taken: list[tuple[str, int]] = []
    written = threading.Event()

    def write(seed: int) -> None:
        chosen = random.Random(seed)
        with psycopg.connect(rig.settings.database_url, autocommit=True) as connection:
            for _ in range(300):
                with connection.transaction():
                    connection.execute("SELECT outbox_add('t', %s, 'e', 'x')", [f"a-{chosen.randrange(9)}"])
                    time.sleep(chosen.uniform(0, 0.004))

    def publish(publisher: Reading) -> None:
        while not written.is_set():
            with contextlib.suppress(UnavailableError):
                publisher.look()

    with reading(settings, 4) as publishers, ThreadPoolExecutor() as threads:
        for number, publisher in enumerate(publishers):
            publisher.producer = Unreliable(taken, number)
        publishing = [threads.submit(publish, publisher) for publisher in publishers]
        try:
            for writing in [threads.submit(write, seed) for seed in range(3)]:
                writing.result()
            rig.wait("an empty outbox", lambda: not unpublished(rig) or any(each.done() for each in publishing))
        finally:
            written.set()
        for each in publishing:
            each.result()
    assert unpublished(rig) == []
    assert len(set(taken)) == 600 + 3 * 300
    for number in range(9):
        ids = [row_id for key, row_id in taken if key == f"a-{number}"]
        assert list(dict.fromkeys(ids)) == sorted(set(ids))
