"""The output of `brewctl dlq` for dead letters and parked events."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeGuard, cast

from brewctl.cli import output

if TYPE_CHECKING:
    from brewctl.delivery.inbox.dead_letter import Letter
    from brewctl.delivery.inbox.parking import ParkedEvent

_WIDTH = 80
_ID_WIDTH = 9
_PREVIEW_BYTES = 64 * 4


def is_parked(each: "Letter | ParkedEvent") -> TypeGuard["ParkedEvent"]:
    """Tell a parked event from a dead letter."""
    return hasattr(each, "parked_at")


def written_at(each: "Letter | ParkedEvent") -> datetime:
    """Return when it was parked, or written to the dead-letter topic."""
    return each.parked_at if is_parked(each) else cast("Letter", each).written_at


def name(each: "Letter | ParkedEvent") -> str:
    """Return its id, as `dlq` commands take it."""
    return each.name if is_parked(each) else cast("Letter", each).id


def table(found: Sequence["Letter | ParkedEvent"], *, as_json: bool = False) -> None:
    """Print a line, or a JSON object, for each."""
    width = max([_ID_WIDTH, *(len(name(each)) for each in found)])
    header = "" if as_json else _row("id", "written", "group", "reason", width=width)
    for each in found:
        if as_json:
            output.emit_json(_parked_summary(each) if is_parked(each) else _summary(cast("Letter", each)))
            continue
        if header:
            output.emit(header)
            header = ""
        outcome = f"[{each.outcome}] " if each.outcome else ""
        reason = f"({each.reason})" if is_parked(each) and not each.attempts else each.reason
        row = _row(name(each), f"{written_at(each):%Y-%m-%d %H:%M}", each.group, outcome + reason, width=width)
        output.emit(row)


def show_letter(letter: "Letter", topic: str, *, as_json: bool) -> None:
    """Print all of a dead letter of this topic."""
    order = _order(letter)
    if as_json:
        import base64

        value = None if letter.value is None else base64.b64encode(letter.value).decode()
        headers = [[name, output.text(raw)] for name, raw in letter.headers]
        output.emit_json({**_summary(letter), "headers": headers, "value_base64": value, "order": order})
        return
    fields = {
        "letter": f"{letter.id} in {topic}",
        "written": f"{letter.written_at:%Y-%m-%d %H:%M:%S} UTC",
        "state": state(letter),
        "reason": letter.reason or "-",
        "group": letter.group or "-",
        "died at": "{} {}@{}".format(*letter.died_at) if letter.died_at[0] else "-",
        "key": "-" if letter.key is None else output.text(letter.key),
        **{f"  {name}": output.text(raw) for name, raw in letter.headers},
        "value": _size(letter),
        **{f"  {name}": str(value) for name, value in (order or {}).items()},
    }
    for name, value in fields.items():
        output.emit(f"{output.plain(name):<16}{output.plain(value)}")
    if order is None and letter.value:
        _dump(letter.value)
    if not letter.outcome:
        redrive = "" if letter.obstacle else f"brewctl dlq redrive {letter.id}, or "
        output.note(f"next: {redrive}brewctl dlq drop {letter.id}")


def show_parked(parked: "ParkedEvent", *, as_json: bool) -> None:
    """Print all of a parked event."""
    if as_json:
        import base64

        headers = [[header, output.text(raw)] for header, raw in parked.record.headers]
        value = base64.b64encode(parked.value).decode()
        output.emit_json({**_parked_summary(parked), "headers": headers, "value_base64": value})
        return
    for field, value in _parked_fields(parked):
        output.emit(f"{output.plain(field):<16}{output.plain(value)}")
    _dump(parked.value)
    if not parked.outcome:
        output.note(f"next: brewctl dlq redrive {name(parked)}, or brewctl dlq drop {name(parked)}")


def _row(letter_id: str, written: str, group: str, reason: str, *, width: int) -> str:
    return output.fitted(f"{letter_id:<{width}} {written:<16} {output.fitted(group, 13):<13} {reason}", _WIDTH)


def _summary(letter: "Letter") -> dict[str, object]:
    topic, partition, offset = letter.died_at
    return {
        "id": letter.id,
        "state": letter.outcome or "open",
        "written_at": letter.written_at.isoformat(),
        "reason": letter.reason,
        "group": letter.group,
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "key": None if letter.key is None else output.text(letter.key),
        "value_bytes": None if letter.value is None else len(letter.value),
        "omitted": letter.omitted or None,
        "new_partition": letter.new_place and letter.new_place.partition,
        "new_offset": letter.new_place and letter.new_place.offset,
    }


def state(letter: "Letter") -> str:
    """Return a dead letter's outcome, and its new place if it was redriven."""
    place = "is now at {} {}@{}".format(letter.died_at[0], *letter.new_place) if letter.new_place else ""
    return f"{letter.outcome or 'open'}{', ' if place else ''}{place}"


def _size(letter: "Letter") -> str:
    if letter.omitted:
        return f"not kept: {letter.obstacle}"
    return "null" if letter.value is None else f"{len(letter.value)} bytes"


def _order(letter: "Letter") -> dict[str, object] | None:
    from google.protobuf.json_format import MessageToDict

    from brewctl.delivery import events

    try:
        order = events.parse_order(letter.value or b"")
    except events.UnreadableError:
        return None
    return MessageToDict(order, preserving_proto_field_name=True)


def _dump(value: bytes) -> None:
    """Print the first bytes, as `hexdump -C` does."""
    for start in range(0, min(len(value), _PREVIEW_BYTES), 16):
        part = value[start : start + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)  # noqa: PLR2004 - ASCII's printables
        output.emit(f"  {start:04x}  {part.hex(' '):<47}  {letters}")
    if len(value) > _PREVIEW_BYTES:
        output.emit(f"  … {len(value) - _PREVIEW_BYTES} bytes more: --json has them all")


def _parked_summary(parked: "ParkedEvent") -> dict[str, object]:
    """Return the fields of a parked event that `dlq list --json` prints."""
    return {
        "id": name(parked),
        "state": parked.outcome or "parked",
        "written_at": parked.parked_at.isoformat(),
        "reason": parked.reason,
        "group": parked.group,
        "topic": parked.topic,
        "partition": parked.partition,
        "offset": parked.offset,
        "key": parked.key,
        "seq": parked.seq,
        "outbox_id": parked.outbox_id,
        "event_id": parked.event_id,
        "event_type": parked.event_type,
        "attempts": parked.attempts,
        "value_bytes": len(parked.value),
    }


def _parked_fields(parked: "ParkedEvent") -> Iterable[tuple[str, str]]:
    """Yield the names and values that `dlq show` prints of a parked event."""
    yield "parked event", name(parked)
    yield "parked", f"{parked.parked_at:%Y-%m-%d %H:%M:%S} UTC"
    yield "state", parked.outcome or "waits to be redriven"
    yield "reason", parked.reason
    yield "tries", str(parked.attempts or "none: it waits behind an event of its key")
    yield "group", parked.group
    yield "read at", f"{parked.topic} {parked.partition}@{parked.offset}"
    yield "key", parked.key
    for header, raw in parked.record.headers:
        yield f"  {header}", output.text(raw)
    yield "value", f"{len(parked.value)} bytes"
