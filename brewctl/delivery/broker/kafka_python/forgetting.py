"""The request OffsetDelete: deletes a group's offsets of single topics. The library only deletes whole groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from kafka import errors
from kafka.protocol.api import Request, Response
from kafka.protocol.types import Array, Int16, Int32, Schema, String

_API_KEY, _API_VERSION = 47, 0
_SUBSCRIBED = 86  # GROUP_SUBSCRIBED_TO_TOPIC
_ABSENT = frozenset({errors.GroupIdNotFoundError.errno, errors.UnknownTopicOrPartitionError.errno})


class GroupSubscribedToTopicError(errors.KafkaError):  # type: ignore[misc]
    """The group has members that read the topic."""


class OffsetDeleteResponse(Response):  # type: ignore[misc]
    """One error code for the whole request, and one for each partition."""

    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    SCHEMA = Schema(
        ("error_code", Int16),
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                ("partitions", Array(("partition", Int32), ("error_code", Int16))),
            ),
        ),
    )


class OffsetDeleteRequest(Request):  # type: ignore[misc]
    """Has to be sent to the group's coordinator."""

    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    RESPONSE_TYPE = OffsetDeleteResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
    )


def question(group: str, partitions: Mapping[str, Sequence[int]]) -> OffsetDeleteRequest:
    """Return the request to delete a group's offsets of these partitions, by topic."""
    return OffsetDeleteRequest(group, [(topic, list(numbers)) for topic, numbers in partitions.items()])


def check(response: Any) -> None:
    """Raise the first error of a response. An absent group or topic is none: there is nothing to delete."""
    codes = [response.error_code]
    codes += [code for _topic, partitions in response.topics for _partition, code in partitions]
    for code in codes:
        if code in (_SUBSCRIBED, errors.NonEmptyGroupError.errno):
            raise GroupSubscribedToTopicError
        if code and code not in _ABSENT:
            raise errors.for_code(code)
