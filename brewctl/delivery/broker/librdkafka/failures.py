"""What an error of the library means for a member of a group: the consumer ends, a new member is made, or neither."""

from confluent_kafka import KafkaError

from brewctl.config import Settings
from brewctl.delivery.broker import failure_reasons
from brewctl.delivery.broker.librdkafka.connection_settings import FORBIDDEN, words
from brewctl.delivery.broker.outcomes import UnavailableError
from brewctl.errors import BrewError

# Errors that a retry can't fix: a group of another kind, or records in a compression that the library can't unpack.
_FATAL = frozenset(
    {
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError._FATAL,  # noqa: SLF001 - public, all of them
        KafkaError._NOT_IMPLEMENTED,  # noqa: SLF001 - a codec
    }
)
# Errors after which the member goes on by itself: a topic that does not exist yet, a poll that came late.
_PASSING = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
        KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001
    }
)
# The only connection error that is worth a new member: making one reads the certificates again.
_DOWN = frozenset({KafkaError._ALL_BROKERS_DOWN})  # noqa: SLF001


def passes(error: KafkaError) -> bool:
    """Return whether the member goes on after this error of a poll."""
    return error.code() in _PASSING


def ends(error: KafkaError) -> bool:
    """Return whether this error of a connection ends the member. The library recovers from most of them."""
    return error.fatal() or error.code() in _FATAL | _DOWN | FORBIDDEN.keys()


def failed(error: KafkaError, settings: Settings, *, group: str) -> Exception:
    """Return the exception that a poll raises for an error.

    BrewError: a retry can't fix it. ForbiddenError: the user lacks a right. UnavailableError: a new member may work.
    """
    if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
        return failure_reasons.other_protocol(group)
    if error.code() in FORBIDDEN:
        of_group = error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED
        return failure_reasons.forbidden(
            settings, f"READ {f'group {group}' if of_group else f'topic {settings.topic}'}"
        )
    if error.fatal() or error.code() in _FATAL:
        return BrewError(f"kafka refused consumer group {group}: {words(error)}")
    return UnavailableError(words(error))
