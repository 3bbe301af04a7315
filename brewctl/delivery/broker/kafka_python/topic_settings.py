"""A topic's settings: reading them, and changing some of them.

The library lacks the second: its own request replaces all settings of the topic.
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
_TOPIC, _DEFAULT = 1, 5  # Kafka's numbers for the source of a value; the numbers between are brokers' settings


@dataclass(frozen=True, slots=True)
class TopicSetting:
    """The value of a topic's setting, and its source: set on the topic, set on the brokers, or Kafka's default."""

    value: str
    source: str  # topic, broker or default


class IncrementalAlterConfigsResponse(Response):  # type: ignore[misc]
    """One error code for each topic."""

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
    """Can be sent to any broker."""

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
    """Return the request to change these settings; None removes one."""
    configs = [(name, _DELETE if value is None else _SET, value) for name, value in wanted.items()]
    return IncrementalAlterConfigsRequest([(ConfigResourceType.TOPIC, topic, configs)], False)


def check(response: Any) -> None:
    """Raise the first error of a response, with Kafka's message."""
    for code, message, _kind, topic in response.resources:
        if code in (errors.TopicAuthorizationFailedError.errno, errors.UnknownTopicOrPartitionError.errno):
            raise errors.for_code(code)(topic)
        if code:
            raise errors.for_code(code)(message or topic)


def read(answer: Any) -> tuple[int, dict[str, TopicSetting]]:
    """Return the error code and the settings in a response about one topic."""
    ((code, _message, _kind, _name, entries),) = answer.resources
    return code, {name: TopicSetting(value, _source(answer, rest)) for name, value, *rest in entries}


def _source(answer: Any, rest: list[Any]) -> str:
    if answer.API_VERSION == 0:  # before Kafka 1.1 the answer only tells whether it is the default
        return "default" if rest[1] else "topic"
    return {_TOPIC: "topic", _DEFAULT: "default"}.get(rest[1], "broker")
