"""Sorting the library's messages: into records, ends of partitions, lost offsets, and failures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

from brewctl import log
from brewctl.config import Settings
from brewctl.delivery.broker.librdkafka.connection_settings import Refusals, error_of, words
from brewctl.delivery.broker.librdkafka.failures import ends, failed, passes
from brewctl.delivery.broker.librdkafka.records import RecordConverter
from brewctl.delivery.broker.record import Record

logger = log.get(__name__)


class Polling:
    """Takes the messages of one member. Once `failure` is set, the member is unusable and `explained` raises it."""

    def __init__(self, settings: Settings, *, group: str, node: str) -> None:
        self._settings = settings
        self._group = group
        self._refusals = Refusals(settings)
        self._converter = RecordConverter(settings, name=node)
        self.reached: dict[int, int] = {}  # partition → its end, by the messages of this poll
        self.lost: dict[int, int] = {}  # partition → the next offset, which the partition does not have any more
        self.failure: Exception | None = None

    def records(self, library: Consumer, messages: list[Any]) -> list[Record]:
        """Return the records of these messages and of those that are fetched already, at most consume_records.

        The other messages are noted in `reached`, `lost` and `failure`.
        """
        topic, most = self._settings.topic, self._settings.limits.consume_records
        messages += library.consume(most - len(messages), 0)
        records = self._converter.records(topic, messages, self._note_event)
        while len(records) < len(messages):  # some messages are no records: more records may be fetched behind them
            messages = library.consume(most - len(records), 0)
            records += (some := self._converter.records(topic, messages, self._note_event))
            if len(some) == len(messages):
                break
        return records

    def _note_event(self, message: Any) -> None:
        """Note a message that is no record: the end of a partition, a lost offset, or an error."""
        error = message.error()
        code, partition, offset = error.code(), message.partition(), message.offset()
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001
            self.reached[partition] = offset
        elif code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            self.lost[partition] = offset
        elif passes(error):
            logger.debug("librdkafka", said=words(error))
        else:
            self.failure = self.failure or failed(error, self._settings, group=self._group)

    def on_connection_error(self, error: KafkaError) -> None:
        """Note an error of a connection: the library's callback `error_cb`."""
        self._refusals.hear(error)
        if ends(error):
            self.failure = self.failure or failed(error, self._settings, group=self._group)

    def renew_password(self, library: Consumer) -> None:
        """Give the library the password as its file has it now, if a broker has refused the one before."""
        self._refusals.renew(library)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise an earlier `failure`; else raise the library's errors as `membership.Consumer.poll` describes."""
        if self.failure:
            raise self.failure
        try:
            yield
        except KafkaException as raised:
            raise failed(error_of(raised), self._settings, group=self._group) from raised

    def close(self) -> None:
        """Close the connections of the client that reads records a second time, if there are any."""
        self._converter.close()
