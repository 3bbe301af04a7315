"""Dead letters are read once, in parts where there are many, and asked after while they are open."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from brewctl.config import Settings
from brewctl.delivery.broker import Record
from brewctl.delivery.inbox import dead_letter
from brewctl.exporter import letters, postgres
from brewctl.exporter.letters import LetterCounter

GROUPS = ("inventory", "notifications")


class Topic:
    """The dead-letter topic and the table of what became of its letters, as Letters asks for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[Record] = []
        self.settled: dict[int, str] = {}  # outcomes by offset
        self.read_at: list[int] = []
        self.asked_after: list[list[int]] = []
        monkeypatch.setattr(postgres, "bounded", lambda _settings, _connection, ask: ask(self))

    def add(self, *groups: str) -> None:
        for group in groups:
            dead = Record("topic", b"k", b"rubbish", [], 0, 0)
            letter = dead_letter.letter_for(dead, "unreadable", group=group, topic="topic.dlq")
            self.records.append(letter._replace(partition=0, offset=len(self.records), timestamp_ms=1000))

    def bounds(self, _topic: str) -> dict[int, tuple[int, int]]:
        return {0: (0, len(self.records))}

    def read(self, _topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[list[Record]]:
        for first, end in ranges.values():
            for record in self.records[first:end]:
                self.read_at.append(record.offset)
                yield [record]

    def execute(self, _query: str, asked: Any) -> Any:
        self.asked_after.append(asked["offsets"])
        rows = [(0, offset, self.settled[offset], None, None) for offset in asked["offsets"] if offset in self.settled]

        class Answer:
            def fetchall(self) -> list[tuple[Any, ...]]:
                return rows

        return Answer()

    def look(self, counting: LetterCounter) -> dict[str, float] | None:
        """All that is not 0; None where it is not known yet."""
        samples = counting.look(self, self)  # type: ignore[arg-type]
        return None if samples is None else {" ".join(each.labels): each.value for each in samples if each.value}


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    return Topic(monkeypatch)


def counting(within_s: float = 60.0) -> LetterCounter:
    return LetterCounter(Settings(), GROUPS, within_s=within_s)


def test_a_letter_is_read_once_and_asked_after_while_it_is_open(topic: Topic) -> None:
    count = counting()
    topic.add("inventory", "inventory", "notifications")
    assert topic.look(count) == {"inventory open": 2, "notifications open": 1}
    topic.settled = {0: "redriven", 2: "dropped"}
    topic.add("inventory")
    assert topic.look(count) == {"inventory open": 2, "inventory redriven": 1, "notifications dropped": 1}
    assert topic.look(count) == {"inventory open": 2, "inventory redriven": 1, "notifications dropped": 1}
    assert topic.read_at == [0, 1, 2, 3]
    assert topic.asked_after == [[0, 1, 2], [0, 1, 2, 3], [1, 3]]


def test_many_letters_are_read_in_parts_and_counted_once_all_are_known(topic: Topic) -> None:
    count = counting(within_s=-1)  # time for one fetch
    topic.add(*["inventory"] * 3)
    assert topic.look(count) is None
    assert topic.look(count) is None
    assert topic.look(count) is None
    assert topic.look(count) == {"inventory open": 3}
    assert topic.read_at == [0, 1, 2]


def test_a_topic_that_was_made_anew_is_counted_anew(topic: Topic) -> None:
    count = counting()
    topic.add("inventory", "inventory")
    topic.settled = {0: "dropped"}
    assert topic.look(count) == {"inventory open": 1, "inventory dropped": 1}
    topic.records.clear()
    topic.settled.clear()
    topic.add("notifications")
    assert topic.look(count) == {"notifications open": 1}


def test_names_that_anybody_can_make_up_are_a_bounded_number_of_series(topic: Topic) -> None:
    count = counting()
    topic.add(*(f"stranger-{number}" for number in range(1000)), "inventory")
    found = topic.look(count)
    assert found
    assert len(found) <= letters._MOST_GROUPS + 1
    assert found["inventory open"] == 1
    assert found["other open"] == 1000 + len(GROUPS) - letters._MOST_GROUPS
