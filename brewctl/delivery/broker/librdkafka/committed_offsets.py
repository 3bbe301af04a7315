"""A group's committed offsets: reading and committing them, with waits that end after a stop."""

import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from brewctl import log
from brewctl.delivery.broker.librdkafka.connection_settings import error_of, within, words
from brewctl.delivery.broker.librdkafka.patience import Patience
from brewctl.delivery.broker.outcomes import UnavailableError
from brewctl.limits import Limits

logger = log.get(__name__)


def read(library: Consumer, places: Sequence[TopicPartition], limits: Limits, patience: Patience) -> dict[int, int]:
    """Return the group's committed offset of each of these partitions that has one. Raises UnavailableError."""
    until = time.monotonic() + limits.kafka_request_s
    while True:
        try:
            found = library.committed(list(places), timeout=min(1.0, limits.kafka_leave_s))
            break
        except KafkaException as raised:
            if patience.is_over() or time.monotonic() > until:
                raise UnavailableError(words(error_of(raised))) from raised
    for place in found:
        if place.error is not None:
            raise UnavailableError(words(place.error))
    return {place.partition: place.offset for place in found if place.offset >= 0}


def commit(library: Consumer, offsets: list[TopicPartition], patience: Patience, *, within_callback: bool) -> str:
    """Commit offsets; return Kafka's reason where it refuses them, else "".

    In the library's rebalance callback (`within_callback`) no other thread may commit, and a commit that waits for its
    answer would wait without a bound. So the answer goes to `log_refusal`, and the library joins the group again only
    after it. Raises KafkaException; TimeoutError where the answer does not come within kafka_leave_s after a stop.
    """
    if within_callback:
        library.commit(offsets=offsets, asynchronous=True)
        return ""
    answers: list[TopicPartition] = within(lambda: library.commit(offsets=offsets, asynchronous=False), patience.wait)
    return next((words(answer.error) for answer in answers if answer.error is not None), "")


def log_refusal(error: KafkaError | None, places: Sequence[TopicPartition]) -> None:
    """Log why Kafka refused a commit whose answer was not waited for: the library's callback `on_commit`."""
    refusals = [error, *(place.error for place in places)]
    if refused := next((each for each in refusals if each is not None), None):
        logger.warning("commit_refused", reason=words(refused), hint="redelivered and skipped as duplicates")
