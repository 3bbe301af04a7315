"""What an error of the library means to a member of a group: it ends, a new member is made, or nothing happens."""

from confluent_kafka import KafkaError

from brewctl.config import Settings
from brewctl.delivery.broker import failure_reasons
from brewctl.delivery.broker.librdkafka.connection_settings import FORBIDDEN, words
from brewctl.delivery.broker.outcomes import UnavailableError
from brewctl.errors import BrewError

# What no retry mends once a consumer runs: another kind of group, or records that can't be unpacked.
_FATAL = frozenset(
    {
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError._FATAL,  # noqa: SLF001 - public, all of them
        KafkaError._NOT_IMPLEMENTED,  # noqa: SLF001 - a codec
    }
)
# The member goes on by itself: a topic that is not there yet, a poll that came late.
_PASSING = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
        KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001
    }
)
# Of what the library says of its connections, only this is worth a new member, which reads certificates again.
_DOWN = frozenset({KafkaError._ALL_BROKERS_DOWN})  # noqa: SLF001


def passes(error: KafkaError) -> bool:
    """Say whether the member goes on after an error that a poll returned."""
    return error.code() in _PASSING


def ends(error: KafkaError) -> bool:
    """Say whether what the library says of its connections ends the member; most of it passes."""
    return error.fatal() or error.code() in _FATAL | _DOWN | FORBIDDEN.keys()


def failed(error: KafkaError, settings: Settings, *, group: str) -> Exception:
    """Return what a poll raises: BrewError where no retry mends it, ForbiddenError, else UnavailableError."""
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
