"""`brewctl groups reset`: set a group's offsets."""

import re
import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import completion, options, output
from brewctl.errors import UsageError

if TYPE_CHECKING:
    from brewctl.delivery.repair.group_reset import Move, Target

_AGO = re.compile(r"-([0-9]{1,6})([smhd])", re.ASCII)
_OFFSET = re.compile(r"[0-9]{1,18}", re.ASCII)
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def reset(
    name: Annotated[str, typer.Argument(help="The group.", metavar="NAME", autocompletion=completion.groups)],
    to: Annotated[
        str,
        typer.Option(
            help="New place in every partition: earliest, latest, an offset, or the first record since a time: "
            "2026-11-25T12:00, local without a zone, or a time ago: -90s, -15m, -2h, -1d.",
            metavar="PLACE",
            autocompletion=completion.places,
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: options.AsJson = False,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Set the offsets of a group that has no members.

    Back to read records again, or forward to skip them.

    Where a partition does not have the offset, it takes the nearest one.
    """
    target = _target(to)
    settings = options.settings(brokers=brokers, topic=topic, downstreams=downstream)
    from brewctl.delivery import registry
    from brewctl.delivery.broker import open_admin
    from brewctl.delivery.repair import group_reset

    verbs = {registry.kafka_group(settings, each): each.verb for each in registry.configured(settings)}
    name = registry.kafka_name(settings, name)
    with open_admin(settings) as admin:
        moves = group_reset.plan(admin, name, settings.topic, target)
        if not as_json:
            _print_plan(moves)
        if outside := [move.partition for move in moves if move.outside]:
            output.note(f"offset {target.value} is not in partitions {outside}: the nearest is taken")
        again = sum(max(-move.distance, 0) for move in moves)
        skipped = sum(max(move.distance, 0) for move in moves)
        if not dry_run:
            ways = [f"read {_records(again)} again"] * bool(again) + [f"pass over {_records(skipped)}"] * bool(skipped)
            if ways:
                options.confirm(f"this lets {output.plain(name)} {' and '.join(ways)}", yes=yes)
            group_reset.reset(admin, name, settings.topic, moves)
    if as_json:
        places = [{**asdict(move), "distance": move.distance} for move in moves]
        output.emit_json({"group": name, "dry_run": dry_run, "again": again, "skipped": skipped, "partitions": places})
    else:
        output.emit(f"{output.plain(name)}: again={again} skipped={skipped}")
    if dry_run:
        output.note("nothing was changed: this was a dry run")
    _note_consequences(verbs.get(name), again, skipped)


def _print_plan(moves: list["Move"]) -> None:
    output.emit(f"{'partition':>9} {'from':>12} {'to':>12} {'records':>12}")
    for move in moves:
        output.emit(f"{move.partition:>9} {move.before:>12} {move.after:>12} {move.distance:>+12}")


def _note_consequences(effect: str | None, again: int, skipped: int) -> None:
    if again:
        output.note(f"consumers see {_records(again)} again{'; the inbox skips what it knows' if effect else ''}")
    if skipped:
        stay = f": orders not {effect} yet stay so; `brewctl verify` names them" if effect else ""
        output.note(f"{_records(skipped)} will not be consumed{stay}")


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"


def _target(to: str) -> "Target":
    from brewctl.delivery.repair.group_reset import Target, Where

    if to in {Where.EARLIEST, Where.LATEST}:
        return Target(Where(to))
    if _OFFSET.fullmatch(to):
        return Target(Where.OFFSET, int(to))
    if match := _AGO.fullmatch(to):
        return _since(time.time() * 1000 - int(match[1]) * _UNITS_MS[match[2]])
    try:
        return _since(datetime.fromisoformat(to).timestamp() * 1000)
    except (ValueError, OverflowError):
        hint = "use earliest, latest, an offset, a time such as 2026-11-25T12:00, or -15m"
        raise UsageError(f"--to {to[:80]!r} is no place to go on from", hint=hint) from None


def _since(time_ms: float) -> "Target":
    from brewctl.delivery.repair.group_reset import Target, Where

    return Target(Where.TIME, max(int(time_ms), 0))  # to Kafka, a time below 0 has another meaning
