"""How long the topic keeps its records: a new downstream gets as many days, and a group may stop for as long.

Kafka removes whole segments of a partition, once the newest record in one is older than `retention.ms`. The active
segment is closed when it is full, or after `segment.ms`, a week by default, so that a quiet topic would keep records up
to a week longer. So we set `segment.ms` too: to a seventh of `retention.ms`.
"""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from brewctl.delivery.broker import Admin, TopicSetting
from brewctl.errors import UsageError

DEFAULT = "7d"
FOREVER_MS = -1
_FOREVER = "forever"
_KEEP = re.compile(r"([0-9]{1,9})([smhd]?)", re.ASCII)
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "": 86_400_000}
_MOST_DAYS = 36_500
_SEGMENTS = 7
_SEGMENT_MS = (10_000, _UNITS_MS["d"] * 7)
_HINT = f"use days such as 7 or 7d, hours such as 36h, or {_FOREVER}"
# The settings that decide when a record is removed.
NAMES = (
    "retention.ms",
    "retention.bytes",
    "cleanup.policy",
    "segment.ms",
    "segment.bytes",
    "message.timestamp.type",
)


def parse(text: str) -> int:
    """Return how many milliseconds a topic is to keep its records; FOREVER_MS. Raises UsageError."""
    if text == _FOREVER:
        return FOREVER_MS
    if not (match := _KEEP.fullmatch(text)):
        raise UsageError(f"{text[:80]!r} is no time to keep records", hint=_HINT)
    found = int(match[1]) * _UNITS_MS[match[2]]
    if not found:
        raise UsageError(f"{text[:80]!r} would keep no record", hint=_HINT)
    if found > _MOST_DAYS * _UNITS_MS["d"]:
        raise UsageError(f"{text[:80]!r} is longer than {_MOST_DAYS} days", hint=f"use {_FOREVER}")
    return found


def words(keep_ms: int) -> str:
    """Return a time as `parse` reads it, in the largest unit that gives a whole number."""
    if keep_ms < 0:
        return _FOREVER
    for unit in ("d", "h", "m", "s"):
        if keep_ms % _UNITS_MS[unit] == 0:
            return f"{keep_ms // _UNITS_MS[unit]}{unit}"
    return f"{keep_ms}ms"


def wanted(keep_ms: int) -> dict[str, str | None]:
    """Return the settings of a topic that removes records only by their age; None: the brokers' default."""
    segment_ms = None if keep_ms < 0 else str(_segment_ms(keep_ms))
    return {
        "retention.ms": str(keep_ms),
        "retention.bytes": "-1",
        "cleanup.policy": "delete",
        "segment.ms": segment_ms,
    }


def _segment_ms(keep_ms: int) -> int:
    least, most = _SEGMENT_MS
    found = min(max(keep_ms // _SEGMENTS, least), most)
    unit = next(ms for ms in (_UNITS_MS["h"], _UNITS_MS["m"], _UNITS_MS["s"]) if ms <= found)
    return found - found % unit  # a whole number of a unit is easier to read


@dataclass(frozen=True)
class Kept:
    """A topic's current settings about keeping records."""

    settings: Mapping[str, TopicSetting]

    @property
    def keep_ms(self) -> int:
        """How long the topic keeps records at least, or FOREVER_MS."""
        found = int(self.settings["retention.ms"].value)
        return found if found >= 0 and "delete" in self.settings["cleanup.policy"].value else FOREVER_MS

    @property
    def segment_ms(self) -> int:
        """How much older the first record of a segment may be than its last one; both are removed together."""
        return int(self.settings["segment.ms"].value)

    @property
    def most_bytes(self) -> int:
        """How many bytes a partition keeps at most; negative: no limit."""
        return int(self.settings["retention.bytes"].value)

    @property
    def compacts(self) -> bool:
        """Whether the topic is compacted, so that earlier events of a key are removed."""
        return "compact" in self.settings["cleanup.policy"].value

    def problems(self) -> Iterator[str]:
        """Yield the settings that remove records for another reason than their age."""
        if self.compacts:
            policy = self.settings["cleanup.policy"].value
            yield f"cleanup.policy is {policy}: of a key's events only the last one stays"
        if self.most_bytes >= 0:
            yield f"retention.bytes is {self.most_bytes}: what is more in a partition is removed, however young"


def look(admin: Admin, topic: str) -> Kept:
    """Return a topic's settings. Raises BrewError where there is no such topic, or the user may not read them."""
    found = admin.topic_settings(topic)
    return Kept({name: found[name] for name in NAMES})


def unread(admin: Admin, topic: str, groups: Mapping[str, Mapping[int, int]], *, older_ms: int) -> dict[str, int]:
    """Count for each group the unread records that are older than `older_ms`, by their timestamps and our clock.

    `groups`: by name, the offset that each reads next in each partition. Groups without such records are left out.
    """
    since = admin.offsets_at(topic, int(time.time() * 1000) - older_ms)
    found = {
        group: sum(max(0, since.get(partition, 0) - position) for partition, position in positions.items())
        for group, positions in groups.items()
    }
    return {group: records for group, records in found.items() if records}
