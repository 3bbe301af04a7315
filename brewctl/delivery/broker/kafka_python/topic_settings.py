"""What a topic is configured with, and changes of it that leave the rest as it is, which the library does not know.

Its own request replaces everything that was set on the topic before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kafka import errors
from kafka.admin import ConfigResourceType
from kafka.protocol.api import Request, Response
from kafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

_API_KEY, _API_VERSION = 44, 0
_SET, _DELETE = 0, 1
_TOPIC, _DEFAULT = 1, 5  # where a value comes from; what is between them is set on brokers


@dataclass(frozen=True, slots=True)
class TopicSetting:
    """A value of a topic, and whether the topic itself, a broker, or nobody has set it."""

    value: str
    source: str  # topic, broker or default


class IncrementalAlterConfigsResponse(Response):  # type: ignore[misc]
    """An error for each topic."""

    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "resources",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class IncrementalAlterConfigsRequest(Request):  # type: ignore[misc]
    """Asks any broker."""

    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    RESPONSE_TYPE = IncrementalAlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


def change(topic: str, wanted: Mapping[str, str | None]) -> IncrementalAlterConfigsRequest:
    """Return the request to set these; None: the brokers' own value again."""
    configs = [(name, _DELETE if value is None else _SET, value) for name, value in wanted.items()]
    return IncrementalAlterConfigsRequest([(ConfigResourceType.TOPIC, topic, configs)], False)


def check(response: Any) -> None:
    """Raise the error that Kafka answered, with its words."""
    for code, message, _kind, topic in response.resources:
        if code in (errors.TopicAuthorizationFailedError.errno, errors.UnknownTopicOrPartitionError.errno):
            raise errors.for_code(code)(topic)
        if code:
            raise errors.for_code(code)(message or topic)


def read(answer: Any) -> tuple[int, dict[str, TopicSetting]]:
    """Return the error of an answer about one topic, and what the topic is configured with."""
    ((code, _message, _kind, _name, entries),) = answer.resources
    return code, {name: TopicSetting(value, _source(answer, rest)) for name, value, *rest in entries}


def _source(answer: Any, rest: list[Any]) -> str:
    if answer.API_VERSION == 0:  # before Kafka 1.1 it says only whether it is the default
        return "default" if rest[1] else "topic"
    return {_TOPIC: "topic", _DEFAULT: "default"}.get(rest[1], "broker")
