"""`brewctl dlq …`: dead letters, shown, redriven, dropped."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import completion, options, output
from brewctl.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.delivery.dead_letters import DeadLetters, Filter, Letter, Settled

_WIDTH = 80
_PREVIEW_BYTES = 64 * 4
_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,18})", re.ASCII)

Ids = Annotated[list[str] | None, typer.Argument(help="Letters, as `dlq list` names them.", metavar="ID…")]
Group = Annotated[
    str,
    typer.Option(
        help="Those that this consumer group could not handle.", show_default=False, autocompletion=completion.groups
    ),
]
Reason = Annotated[str, typer.Option(help="Those with this in their reason.", metavar="TEXT", show_default=False)]
Key = Annotated[str, typer.Option(help="Those of records with this key.", show_default=False)]
Order = Annotated[str, typer.Option(help="Those of this order.", metavar="ORDER_ID", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All that are open.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which, and change nothing.")]


def show_all(
    group: Group = "",
    reason: Reason = "",
    key: Key = "",
    order: Order = "",
    every: Annotated[bool, typer.Option("--all", help="Those that were redriven or dropped, too.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many, the oldest.", min=1)] = 100,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """List dead letters, oldest first, and why each died."""
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    wanted = _filter(settings, group, reason, key, order)
    import heapq

    with _opened(settings) as letters:
        found = heapq.nsmallest(
            limit + 1, letters.find(wanted, settled=every), key=lambda letter: (letter.written_at, letter.id)
        )
    _print(found[:limit], as_json=as_json)
    if not found:
        output.note(
            f"no {'' if every else 'open '}dead letters{' of these' if wanted else ''} in {settings.dead_letter_topic}"
        )
    elif len(found) > limit:
        output.note(f"there are more: --limit {limit * 10}")
    if found and not as_json:
        output.note(f"next: brewctl dlq show {found[0].id}")


def show(
    letter_id: Annotated[str, typer.Argument(help="The letter, as `dlq list` names it.", metavar="ID")],
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Show a dead letter whole.

    Where and why it died, its headers, its order or its bytes.
    """
    place = _place(letter_id)
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    with _opened(settings) as letters:
        letter = letters.get(*place)
    order = _order(letter)
    if as_json:
        import base64

        value = None if letter.value is None else base64.b64encode(letter.value).decode()
        headers = [[name, output.text(raw)] for name, raw in letter.headers]
        output.emit_json({**_summary(letter), "headers": headers, "value_base64": value, "order": order})
        return
    fields = {
        "letter": f"{letter.id} in {settings.dead_letter_topic}",
        "written": f"{letter.written_at:%Y-%m-%d %H:%M:%S} UTC",
        "state": _state(letter),
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


def redrive(
    ids: Ids = None,
    group: Group = "",
    reason: Reason = "",
    key: Key = "",
    order: Order = "",
    every: Every = False,
    dry_run: DryRun = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Send dead letters to the topic they died in, once each.

    Every group reads them, and deduplicates.

    Exit 1 where one can't be redriven.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    wanted = _filter(settings, group, reason, key, order)
    places = _places("redrive", ids, wanted, every=every)
    with _opened(settings) as letters:
        chosen = _chosen(letters, places, wanted)
        if dry_run:
            _print(chosen)
            output.note("nothing was sent: this was a dry run")
        else:
            _report("redriven", letters.redrive(chosen))


def drop(
    ids: Ids = None,
    group: Group = "",
    reason: Reason = "",
    key: Key = "",
    order: Order = "",
    every: Every = False,
    dry_run: DryRun = False,
    yes: options.Yes = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Give dead letters up.

    They are never redriven, and no more listed without --all.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    wanted = _filter(settings, group, reason, key, order)
    places = _places("drop", ids, wanted, every=every)
    from dataclasses import replace

    with _opened(settings) as letters:
        chosen = [replace(letter, value=None) for letter in _chosen(letters, places, wanted)]
        if dry_run:
            _print(chosen)
            output.note("nothing was dropped: this was a dry run")
            return
        if chosen:
            what = f"{len(chosen)} dead letter{'s' if len(chosen) > 1 else ''} of {settings.topic}"
            mine = options.is_sandbox(settings.configured, "database_url", "brokers")
            options.confirm_destruction(what, mine=mine, yes=yes)
        _report("dropped", letters.drop(chosen))


@contextlib.contextmanager
def _opened(settings: "Settings") -> Iterator["DeadLetters"]:
    from brewctl.delivery import database
    from brewctl.delivery.dead_letters import open_dead_letters

    with database.connect(settings) as connection:
        database.check_schema(connection)
        with open_dead_letters(settings, connection) as letters:
            yield letters


def _filter(settings: "Settings", group: str, reason: str, key: str, order: str) -> "Filter":
    from brewctl.delivery import events, registry
    from brewctl.delivery.dead_letters import Filter

    if key and order:
        raise UsageError("--key and --order name the same thing", hint="give one of them")
    return Filter(
        group=registry.kafka_name(settings, group),
        reason=reason,
        key=(events.aggregate_id(order) if order else key).encode(),
    )


def _places(command: str, ids: list[str] | None, wanted: "Filter", *, every: bool) -> list[tuple[int, int]]:
    if not (ids or wanted or every):
        raise UsageError(f"`dlq {command}` needs ids, a filter or --all", hint="see `brewctl dlq list`")
    if ids and (wanted or every):
        raise UsageError(f"`dlq {command}` takes ids, or a filter or --all", hint="give one of them")
    return [_place(each) for each in dict.fromkeys(ids or [])]


def _place(letter_id: str) -> tuple[int, int]:
    if not (match := _ID.fullmatch(letter_id)):
        raise UsageError(
            f"{letter_id[:80]!r} is no dead letter's id", hint="use PARTITION:OFFSET, see `brewctl dlq list`"
        )
    return int(match[1]), int(match[2])


def _chosen(letters: "DeadLetters", places: list[tuple[int, int]], wanted: "Filter") -> Iterable["Letter"]:
    # All ids are looked up before anything is settled: an unknown one changes nothing.
    return [letters.get(*place) for place in places] if places else letters.find(wanted)


def _report(verb: str, settled: "Settled") -> None:
    for letter in settled.before:
        output.note(f"{letter.id} {_state(letter)} before")
    for letter, why in settled.refused:
        output.note(f"{letter.id} stays: {output.plain(why)}")
    output.emit(f"{verb}={len(settled.done)} already={len(settled.before)} refused={len(settled.refused)}")
    if settled.refused:
        raise typer.Exit(ExitCode.FAILED)


def _print(letters: Iterable["Letter"], *, as_json: bool = False) -> None:
    header = "" if as_json else _row("id", "written", "group", "reason")
    for letter in letters:
        if as_json:
            output.emit_json(_summary(letter))
            continue
        if header:
            output.emit(header)
            header = ""
        outcome = f"[{letter.outcome}] " if letter.outcome else ""
        output.emit(_row(letter.id, f"{letter.written_at:%Y-%m-%d %H:%M}", letter.group, outcome + letter.reason))


def _row(letter_id: str, written: str, group: str, reason: str) -> str:
    return output.fitted(f"{letter_id:<9} {written:<16} {output.fitted(group, 13):<13} {reason}", _WIDTH)


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


def _state(letter: "Letter") -> str:
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


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    dlq = typer.Typer(help="Dead letters: records that a consumer could not handle.", no_args_is_help=True)
    dlq.command("list", epilog="Example: brewctl dlq list --group inventory --reason outbox-id")(show_all)
    dlq.command(epilog="Example: brewctl dlq show 0:12")(show)
    dlq.command(epilog="Example: brewctl dlq redrive --group inventory --reason 'no stock'")(redrive)
    dlq.command(epilog="Example: brewctl dlq drop 0:12 3:4")(drop)
    app.add_typer(dlq, name="dlq")
