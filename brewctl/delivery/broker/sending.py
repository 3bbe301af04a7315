"""Sending: each record's own acknowledgement, or the reason why there is none."""

import re
import time
from collections.abc import Sequence
from typing import Any

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery.broker import clients
from brewctl.delivery.broker.outcomes import HeldError, Outcome, Place, RefusedError, UnavailableError
from brewctl.delivery.broker.record import Record

logger = log.get(__name__)

_HELD = "an earlier record with its key was not taken"
_TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


class Producer:
    """Sends records with acks from all in-sync replicas, in order per partition.

    What one `send` has for a partition leaves in one batch, as far as it fits into one of Kafka's default size, and
    Kafka takes a batch whole or not at all. `ordered`: once a record is not taken, no later one with its key is.
    `compressed` also takes large records that compression makes fit. Delivery: at least once.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        node: str,
        ordered: bool = True,
        compressed: bool = False,
        seen: dict[str, int] | None = None,
    ) -> None:
        """Connect. `seen`: how many partitions topics had, kept by who makes one producer after another.

        Raises UnreachableError where no broker answers now.
        """
        self._ordered = ordered
        self._seen = {} if seen is None else seen
        self._wire = clients.chosen(settings).Wire(settings, node=node, compressed=compressed)

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        """Send, then await each record's own acknowledgement; its place for each that has it.

        At most about `timeout_s` + kafka_metadata_s seconds. After an UnavailableError that is no UnsentError records
        may still be on their way: `abandon` this producer, so that none can arrive after a later try.
        """
        deadline = time.monotonic() + timeout_s
        outcomes = self._send(records, deadline)
        if len(records) == 1:
            return outcomes
        # A refusal names a whole batch: ask again for each alone, so that only the guilty is refused.
        stopped: set[tuple[str, bytes | None]] = set()
        for position, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
            if isinstance(outcome, RefusedError):
                place = (record.topic, record.key)
                outcomes[position] = HeldError(_HELD) if place in stopped else self._send([record], deadline)[0]
                if self._holds(record) and not isinstance(outcomes[position], Place):
                    stopped.add(place)
        return outcomes

    def _send(self, records: Sequence[Record], deadline: float) -> list[Outcome]:
        sent: list[Any] = []
        failures: dict[str, Outcome] = {}
        stopped: set[tuple[str, bytes | None]] = set()
        partitions: dict[str, int] = {}
        put = self._wire.put
        for record in records:
            topic, key = record.topic, record.key
            if topic not in partitions and topic not in failures and not _TOPIC_NAME.fullmatch(topic):
                # A client would look for it for ever.
                failures[topic] = RefusedError(f"no topic can be called {topic[:80]!r}")
            elif time.monotonic() > deadline:
                failures.setdefault(topic, UnavailableError("the time was up before it was sent"))
            # A topic that can't be sent to must not hold back the others.
            if topic in failures:
                sent.append(failures[topic])
                continue
            if (topic, key) in stopped:
                sent.append(HeldError(_HELD))
                continue
            try:
                if topic not in partitions:
                    partitions[topic] = self._wire.partitions(topic)
                    self._compare(topic, partitions[topic])
                put_in = put(record, partitions[topic], deadline)
            except UnavailableError as error:
                failures[topic] = error
                sent.append(error)
                continue
            sent.append(put_in)
            if isinstance(put_in, Outcome) and not isinstance(put_in, Place) and self._holds(record):
                stopped.add((topic, key))
        return self._wire.outcomes(sent, records, deadline)

    def _holds(self, record: Record) -> bool:
        """Say whether others have to wait behind a record that is not taken."""
        return self._ordered and record.key is not None

    def _compare(self, topic: str, partitions: int) -> None:
        """Say so where a topic has not as many partitions as before: keys move."""
        before = self._seen.setdefault(topic, partitions)
        self._seen[topic] = partitions
        if partitions > before:
            hint = "later events of a key may be in another partition than earlier ones"
            logger.warning("partitions_added", topic=topic, before=before, partitions=partitions, hint=hint)
        elif partitions < before:
            hint = "it was made anew, and its records are gone: see `brewctl outbox republish --missing --dry-run`"
            logger.error("partitions_fewer", topic=topic, before=before, partitions=partitions, hint=hint)

    def close(self) -> None:
        """Close after a `send` that was answered: there is nothing left to lose."""
        self._wire.close()

    def abandon(self) -> None:
        """Close now and drop whatever is still unsent."""
        self._wire.abandon()
