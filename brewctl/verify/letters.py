"""The dead letters: where each comes from, noted in `letter`."""

import re
from collections.abc import Sequence

from brewctl.config import Settings
from brewctl.delivery import events
from brewctl.delivery.broker import Record
from brewctl.delivery.database import Connection
from brewctl.delivery.events import Headers
from brewctl.sql import verify_queries
from brewctl.verify.result import Check
from brewctl.verify.topic import frame, order_of

_NUMBER = re.compile(rb"[0-9]{1,18}")
_FIRST_NOTE = "dlq-reason"


class Letters:
    """Takes every record of the dead-letter topic. `snapshot` has the table `letter`."""

    def __init__(self, settings: Settings, snapshot: Connection) -> None:
        self._topic = settings.topic.encode()
        self._snapshot = snapshot
        self.check = Check("dead-letters", "each letter is a record of the topic")

    def take(self, letters: Sequence[Record]) -> None:
        """Note a batch in `letter`."""
        with self._snapshot.cursor().copy(verify_queries["copy_letter"]) as copy:
            for letter in letters:
                self.check.examined += 1
                # What died may be a letter itself: the last notes are this one's.
                names = [name for name, _ in letter.headers]
                cut = len(names) - names[::-1].index(_FIRST_NOTE) - 1 if _FIRST_NOTE in names else len(names)
                notes = dict(letter.headers[cut:])
                partition, offset = notes.get("dlq-partition", b""), notes.get("dlq-offset", b"")
                if (
                    notes.get("dlq-topic") != self._topic
                    or not _NUMBER.fullmatch(partition)
                    or not _NUMBER.fullmatch(offset)
                ):
                    self.check.fail(f"dead letter {letter.partition}@{letter.offset} names no record of the topic")
                    continue
                copy.write_row((
                    letter.partition,
                    letter.offset,
                    letter.timestamp_ms,
                    notes.get("dlq-group", b"").decode(errors="replace").replace("\0", "?"),
                    int(partition),
                    int(offset),
                    order_of((letter.key or b"").decode(errors="replace")),
                    _outbox_id(letter.value, letter.headers[:cut]),
                    frame(letter.key, letter.headers[:cut]),
                    None if "dlq-omitted" in notes else hash(letter.value or b""),
                ))  # fmt: skip


def _outbox_id(value: bytes | None, headers: Headers) -> int | None:
    try:
        event = events.read_record(value, headers)
    except events.UnreadableError:
        return None
    return event.outbox_id if event else None
