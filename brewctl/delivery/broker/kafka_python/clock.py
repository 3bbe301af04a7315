"""Kafka's own clock, read from the controller's description of its quorum: no other answer of Kafka has the time."""

from typing import Any

from kafka.protocol.api import Request, Response
from kafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

API_KEY, API_VERSION = 55, 1
_METADATA = "__cluster_metadata"

_REPLICAS = CompactArray(
    ("replica_id", Int32),
    ("log_end_offset", Int64),
    ("last_fetch_ms", Int64),
    ("last_caught_up_ms", Int64),
    ("tags", TaggedFields),
)


class DescribeQuorumResponse(Response):  # type: ignore[misc]
    """The voters of the metadata quorum, and when the leader last heard of each. For the leader itself that is now."""

    API_KEY = API_KEY
    API_VERSION = API_VERSION
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("high_watermark", Int64),
                        ("voters", _REPLICAS),
                        ("observers", _REPLICAS),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class DescribeQuorumRequest(Request):  # type: ignore[misc]
    """Can be sent to any broker, which forwards it to the controller."""

    API_KEY = API_KEY
    API_VERSION = API_VERSION
    RESPONSE_TYPE = DescribeQuorumResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                ("partitions", CompactArray(("partition", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


def question() -> DescribeQuorumRequest:
    """Return the request whose answer has the controller's time."""
    return DescribeQuorumRequest([(_METADATA, [(0, {})], {})], {})


def answer(response: Any) -> float | None:
    """Return the controller's time in seconds since the epoch; None if the response has none."""
    for _topic, partitions, _tags in response.topics:
        for _partition, _code, leader, _epoch, _mark, voters, *_rest in partitions:
            for replica, _end, heard_ms, *_ in voters:
                if replica == leader and heard_ms > 0:
                    return float(heard_ms) / 1000
    return None
