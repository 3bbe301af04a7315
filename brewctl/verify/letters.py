"""The dead letters: for each, the record that it is a copy of, written to the table `letter`."""

import re
from collections.abc import Sequence

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Record
from brewctl.verify import contract
from brewctl.verify.result import Check
from brewctl.verify.topic import frame
from brewctl.verify.workspace import Workspace

_NUMBER = re.compile(rb"[0-9]{1,18}")
_FIRST_NOTE = "dlq-reason"


class LetterCheck:
    """Takes every record of the dead-letter topic."""

    def __init__(self, settings: Settings, workspace: Workspace) -> None:
        self._topic = settings.topic.encode()
        # A dead letter has the group's name in Kafka, which may have a prefix. The tables have the plain name.
        self._groups = {registry.kafka_group(settings, each): each.group for each in registry.configured(settings)}
        self._workspace = workspace
        self.check = Check("dead-letters", "each letter is a record of the topic")

    def take(self, letters: Sequence[Record]) -> None:
        """Write a batch of dead letters to the table `letter`."""
        with self._workspace.copy("copy_letter") as copy:
            for letter in letters:
                self.check.examined += 1
                # A dead letter may itself be a copy of a dead letter: the last dlq-… headers are its own.
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
                group = notes.get("dlq-group", b"").decode(errors="replace").replace("\0", "?")
                copy.write_row((
                    letter.partition,
                    letter.offset,
                    letter.timestamp_ms,
                    self._groups.get(group, group),
                    int(partition),
                    int(offset),
                    contract.order_of((letter.key or b"").decode(errors="replace")),
                    contract.read(letter.key, letter.value, letter.headers[:cut]).outbox_id,
                    frame(letter.key, letter.headers[:cut]),
                    None if "dlq-omitted" in notes else hash(letter.value or b""),
                ))  # fmt: skip
