"""Answers of brokers as this process keeps them."""

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition, errors
from kafka.consumer import fetcher

from brewctl.delivery.broker.kafka_python.fetching import Fetcher


def test_of_an_answer_only_what_is_new_or_failed_is_kept_and_how_far_each_partition_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(
        fetcher.Fetcher, "_handle_fetch_response", lambda _self, _request, _time, response: kept.extend(response.topics)
    )
    one = Fetcher.__new__(Fetcher)
    one.stable = {}
    new, nothing = (0, 0, 9, 8, None, b"records"), (1, 0, 7, 5, None, b"")
    failed = (2, errors.OffsetOutOfRangeError.errno, -1, -1, None, b"")
    response = SimpleNamespace(topics=[("orders", [new, nothing, failed])])
    one._handle_fetch_response(None, 0.0, response)
    assert kept == [("orders", [new, failed])]
    assert one.stable == {TopicPartition("orders", 1): 5}  # those of the others are noted as they are read
