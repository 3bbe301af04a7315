"""The outbox publisher: committed rows → Kafka, at least once, in order per aggregate.

    fetch heads FOR UPDATE SKIP LOCKED ─► send, await each acknowledgement ─► mark ─► COMMIT
                    │                                 │ crash here
                    └── other publishers skip         └── the rows are sent again, by anyone: consumers deduplicate

Any number of publishers run side by side without a leader. A Kafka outage is waited out between
transactions, never inside one.
"""

import random
import threading
import time
from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery import events
from brewctl.delivery.broker import Producer, Record, RefusedError, UnavailableError
from brewctl.delivery.database import Pool
from brewctl.errors import BrewError
from brewctl.lifecycle import Backoff
from brewctl.sql import queries

logger = log.get(__name__)


class Publisher:
    """Moves unpublished rows to Kafka for one node, until told to stop."""

    def __init__(self, settings: Settings, pool: Pool, *, node: str) -> None:
        self._settings = settings
        self._pool = pool
        self._node = node
        self._wake = threading.Event()

    def notify(self) -> None:
        """Say that a row was just committed (or that a stop was asked for): look now, not at the next poll."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Publish until `stop` is set, then once more what is still waiting. Outages are retried for ever."""
        limits = self._settings.limits
        backoff = Backoff(stop)
        while not stop.is_set():
            try:
                producer = Producer(self._settings, node=self._node)
            except BrewError as error:
                if backoff.pause():
                    logger.warning("kafka_unreachable", reason=error.message, hint="orders are accepted and wait")
                continue
            try:
                self._publish_until(stop, producer, backoff)
                self._publish_rest(producer, within_s=limits.drain_s / 4)
                producer.close()
            except (UnavailableError, psycopg.Error) as error:
                # Nothing of this producer may arrive after a later try of the same rows.
                producer.abandon()
                if backoff.pause():
                    logger.warning("publish_failed", reason=str(error).strip(), hint="the rows stay and are retried")

    def _publish_until(self, stop: threading.Event, producer: Producer, backoff: Backoff) -> None:
        poll_s = self._settings.limits.publish_poll_s
        while not stop.is_set():
            self._wake.clear()
            # Found rows: look again at once, the next event of a key may have become its head.
            if self.publish_batch(producer) == 0:
                self._wake.wait(poll_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, no secret
            backoff.reset()

    def _publish_rest(self, producer: Producer, *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and self.publish_batch(producer):
            pass

    def publish_batch(self, producer: Producer) -> int:
        """Publish one transaction's worth of rows and return how many were found.

        A row is marked only after its own acknowledgement from all in-sync replicas. Raises
        UnavailableError where some were not acknowledged in time: those stay unpublished.
        """
        limits = self._settings.limits
        started = time.monotonic()
        with self._pool.connection() as connection, connection.transaction():
            rows = connection.execute(queries["fetch_unpublished"], {"limit": limits.publish_rows}).fetchall()
            records, refused = self._records(rows)
            outcomes = producer.send(list(records.values()), timeout_s=limits.publish_s) if records else []
            sent = dict(zip(records, outcomes, strict=True))
            published = [row_id for row_id, outcome in sent.items() if outcome is None]
            refused |= {row_id: str(outcome) for row_id, outcome in sent.items() if isinstance(outcome, RefusedError)}
            if published:
                connection.execute(queries["mark_published"], {"ids": published, "node": self._node})
            for row_id, failure in refused.items():
                connection.execute(queries["set_aside"], {"id": row_id, "failure": failure})
        for row_id, failure in refused.items():
            logger.error("set_aside", outbox_id=row_id, reason=failure)
        if published:
            logger.info("published", rows=len(published), took_ms=round((time.monotonic() - started) * 1000))
        for outcome in outcomes:
            if isinstance(outcome, UnavailableError):
                raise outcome
        return len(rows)

    def _records(self, rows: Sequence[TupleRow]) -> tuple[dict[int, Record], dict[int, str]]:
        """Split rows into the records they become and the reasons why others never can, by outbox id."""
        records: dict[int, Record] = {}
        refused: dict[int, str] = {}
        for row_id, aggregate_id, topic, payload in rows:
            try:
                order = events.parse_order(payload)
            except events.UnreadableError as error:
                refused[row_id] = str(error)
                continue
            headers = events.headers_for(row_id, aggregate_id, order, node=self._node)
            records[row_id] = Record(topic, aggregate_id.encode(), payload, headers)
        return records, refused
