"""Producer: sends records, and returns each record's own acknowledgement or failure."""

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

_HELD = "an earlier record with its key was not acknowledged"
_TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


class Producer:
    """Sends records with acks from all in-sync replicas, in order per partition. Delivery: at least once.

    The records of one `send` for one partition go into one batch, up to Kafka's default batch size, and Kafka accepts
    a batch as a whole or not at all. `ordered`: after a record that is not acknowledged, later ones with its key are
    not sent. `compressed`: also sends large records that only fit compressed.
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
        """Connect. Raises UnreachableError if no broker answers.

        `seen`: topic → number of partitions, from an earlier producer, so that a change in between is logged.
        """
        self._ordered = ordered
        self._seen = {} if seen is None else seen
        self._wire = clients.chosen(settings).Wire(settings, node=node, compressed=compressed)

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        """Send, wait for the acknowledgements, and return each record's outcome: its Place, or why there is none.

        Takes at most about `timeout_s` + kafka_metadata_s seconds. After an UnavailableError that is no UnsentError the
        record may still arrive: `abandon` this producer, so that it can't arrive after a later try.
        """
        deadline = time.monotonic() + timeout_s
        outcomes = self._send(records, deadline)
        if len(records) == 1:
            return outcomes
        # Kafka refuses a whole batch for one bad record. Send each alone, so that only the bad record is refused.
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
                # The libraries would retry such a name for ever.
                failures[topic] = RefusedError(f"no topic can be called {topic[:80]!r}")
            elif time.monotonic() > deadline:
                failures.setdefault(topic, UnavailableError("the time was up before it was sent"))
            # Records of other topics are sent all the same.
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
        """Return whether later records with this record's key must wait until it is acknowledged."""
        return self._ordered and record.key is not None

    def _compare(self, topic: str, partitions: int) -> None:
        """Log a change of a topic's number of partitions: keys move to other partitions."""
        before = self._seen.setdefault(topic, partitions)
        self._seen[topic] = partitions
        if partitions > before:
            hint = "later events of a key may be in another partition than earlier ones"
            logger.warning("partitions_added", topic=topic, before=before, partitions=partitions, hint=hint)
        elif partitions < before:
            hint = "it was recreated, and its records are gone: see `brewctl outbox republish --missing --dry-run`"
            logger.error("partitions_fewer", topic=topic, before=before, partitions=partitions, hint=hint)

    def close(self) -> None:
        """Close it. Only after a `send` in which each record was acknowledged or refused."""
        self._wire.close()

    def abandon(self) -> None:
        """Close it at once, and drop the records that are not acknowledged."""
        self._wire.abandon()
