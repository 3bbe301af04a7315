"""Writes unreadable records to the dead-letter topic, for `inbox`, before their offsets are committed."""

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery.broker import ClockError, Place, Producer, Record, RefusedError, UnavailableError
from brewctl.delivery.inbox import dead_letter
from brewctl.errors import BrewError

logger = log.get(__name__)


class Burial:
    """Writes the dead letters of one consumer. Not for two threads at a time."""

    def __init__(self, settings: Settings, group: str, *, node: str) -> None:
        self._settings = settings
        self._group = group
        self._node = node
        self._dead_letters: Producer | None = None

    def close(self) -> None:
        """Close the connection to the dead-letter topic."""
        if self._dead_letters:
            self._dead_letters.close()

    def bury(self, dead: list[tuple[Record, str]]) -> None:
        """Write records, each with its reason. Those that Kafka did not acknowledge stay in the list.

        Raises UnavailableError for them, BrewError where Kafka will never take one.
        """
        if self._dead_letters is None:
            self._dead_letters = dead_letter.open_producer(self._settings, node=self._node)
        timeout_s = self._settings.limits.publish_s
        group, topic = self._group, self._settings.dead_letter_topic
        letters = [dead_letter.letter_for(record, reason, group=group, topic=topic) for record, reason in dead]
        outcomes = self._dead_letters.send(letters, timeout_s=timeout_s)
        for position, letter in enumerate(letters):
            if isinstance(outcomes[position], ClockError):
                # This machine's clock is wrong: use the record's own time, which Kafka has accepted before.
                record, _ = dead[position]
                letters[position] = letter = letter._replace(timestamp_ms=record.timestamp_ms)  # noqa: PLW2901
                (outcomes[position],) = self._dead_letters.send([letter], timeout_s=timeout_s)
            if isinstance(outcomes[position], RefusedError):
                # Too large even compressed: keep its reason and its offset; the record itself is still in the topic.
                bare = dead_letter.without_value(letter)
                (outcomes[position],) = self._dead_letters.send([bare], timeout_s=timeout_s)
        pairs = list(zip(dead, outcomes, strict=True))
        buried = [each for each, outcome in pairs if isinstance(outcome, Place)]
        dead[:] = [each for each, outcome in pairs if not isinstance(outcome, Place)]
        if buried:  # one line however many
            record, reason = buried[0]
            first = f"{record.partition}@{record.offset}"
            logger.error("dead_letter", count=len(buried), first=first, reason=reason, hint="see `brewctl dlq list`")
        for outcome in outcomes:
            if isinstance(outcome, UnavailableError):
                self._dead_letters.abandon()
                self._dead_letters = None
                raise outcome
            if isinstance(outcome, RefusedError):
                hint = "raise max.message.bytes of the dead-letter topic, if that is why; the offset stays uncommitted"
                raise BrewError(f"kafka refused a dead letter: {outcome}", hint=hint)
