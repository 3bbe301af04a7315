"""`brewctl dlq …`: list, show, redrive and drop dead letters and parked events."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import completion, dlq_parked, dlq_shown, options, output
from brewctl.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.delivery.inbox.dead_letter import Letter
    from brewctl.delivery.inbox.parking import ParkedEvent, ParkingResult
    from brewctl.delivery.repair.dead_letters import DeadLetters, Filter, Settlement

    Place = dlq_parked.Name | tuple[int, int]  # a parked event's id; a dead letter's partition and offset

_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,18})", re.ASCII)

Ids = Annotated[list[str] | None, typer.Argument(help="Ids from `dlq list`.", metavar="ID…")]
Group = Annotated[
    str,
    typer.Option(help="Only those of this consumer group.", show_default=False, autocompletion=completion.groups),
]
Reason = Annotated[str, typer.Option(help="Only those whose reason contains this.", metavar="TEXT", show_default=False)]
Key = Annotated[str, typer.Option(help="Only those with this key.", show_default=False)]
Order = Annotated[str, typer.Option(help="Only those of this order.", metavar="ORDER_ID", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All open ones.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List them, and change nothing.")]


def show_all(
    group: Group = "",
    reason: Reason = "",
    key: Key = "",
    order: Order = "",
    every: Annotated[bool, typer.Option("--all", help="Also those that were redriven or dropped.")] = False,
    limit: Annotated[int, typer.Option(help="Show at most this many, the oldest.", min=1)] = 100,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """List dead letters and parked events, oldest first, and why each is there.

    A dead letter is a record that could not be read. It is in the dead-letter topic.

    A parked event (p1, p2@loyalty, …) is one whose effect failed. Later events of its key are parked behind it, with
    the reason in parentheses. @loyalty names the downstream whose own database holds it.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    wanted = _filter(settings, group, reason, key, order)
    import heapq

    with _opened(settings) as (letters, homes):
        parked, away = homes.find(wanted, settled=every)
        dead = heapq.nsmallest(
            limit + 1, letters.find(wanted, settled=every), key=lambda letter: (letter.written_at, letter.id)
        )
    both: list[Letter | ParkedEvent] = [*dead, *parked]
    found = sorted(both, key=dlq_shown.written_at)
    dlq_shown.table(found[:limit], as_json=as_json)
    if not found and not away:
        of_these = " of these" if wanted else ""
        output.note(
            f"no {'' if every else 'open '}dead letters{of_these} in {settings.dead_letter_topic}, nor parked events"
        )
    elif len(found) > limit:
        output.note(f"there are more: --limit {limit * 10}")
    if found and not as_json:
        output.note(f"next: brewctl dlq show {dlq_shown.name(found[0])}")
    if away:
        raise away


def show(
    letter_id: Annotated[str, typer.Argument(help="Its id from `dlq list`.", metavar="ID")],
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
) -> None:
    """Show all of a dead letter or a parked event.

    That is where and why it failed, its headers, and its order or its bytes.
    """
    place = _place(letter_id)
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    with _opened(settings) as (letters, homes):
        if isinstance(place, dlq_parked.Name):
            (parked,) = homes.get([place])
            dlq_shown.show_parked(parked, as_json=as_json)
            return
        letter = letters.get(*place)
    dlq_shown.show_letter(letter, settings.dead_letter_topic, as_json=as_json)


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
    """Give dead letters and parked events their effect after all, once each.

    A dead letter is published to its topic again. All groups read it; those that have processed it skip it.

    A parked event is processed together with all parked events of its key, in order.

    Exit 1 where one can't be redriven.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    wanted = _filter(settings, group, reason, key, order)
    places = _places("redrive", ids, wanted, every=every)
    with _opened(settings) as (letters, homes):
        chosen = _chosen(letters, places, wanted)
        parked = _chosen_parked(homes, places, wanted)
        homes.require_channel(parked)
        if dry_run:
            dlq_shown.table([*chosen, *parked])
            output.note("nothing was redriven: this was a dry run")
        else:
            outcome = homes.redrive(parked)
            _report("redriven", letters.redrive(chosen), outcome, [each for each in parked if each.outcome])


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
    """Give up dead letters and parked events.

    They will never have their effect. Only `dlq list --all` still lists them.
    """
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic)
    wanted = _filter(settings, group, reason, key, order)
    places = _places("drop", ids, wanted, every=every)
    from dataclasses import replace

    with _opened(settings) as (letters, homes):
        chosen = [replace(letter, value=None) for letter in _chosen(letters, places, wanted)]
        parked = _chosen_parked(homes, places, wanted)
        if dry_run:
            dlq_shown.table([*chosen, *parked])
            output.note("nothing was dropped: this was a dry run")
            return
        if chosen or parked:
            counted = ((len(chosen), "dead letter"), (len(parked), "parked event"))
            named = " and ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counted if count)
            what = f"{named} of {settings.topic}"
            mine = options.is_sandbox(settings.configured, "database_url", "brokers")
            options.confirm_destruction(what, mine=mine, yes=yes)
        outcome = homes.drop(parked)
        _report("dropped", letters.drop(chosen), outcome, [each for each in parked if each.outcome])


@contextlib.contextmanager
def _opened(settings: "Settings") -> Iterator[tuple["DeadLetters", dlq_parked.Homes]]:
    from brewctl.delivery import database
    from brewctl.delivery.repair.dead_letters import open_dead_letters
    from brewctl.delivery.schema import registration

    with database.connect(settings) as connection:
        registration.require_story(settings, connection)
        with open_dead_letters(settings, connection) as letters:
            yield letters, dlq_parked.Homes(settings, connection)


def _filter(settings: "Settings", group: str, reason: str, key: str, order: str) -> "Filter":
    from brewctl.delivery import events, registry
    from brewctl.delivery.repair.dead_letters import Filter

    if key and order:
        raise UsageError("--key and --order name the same thing", hint="give one of them")
    return Filter(
        group=registry.kafka_name(settings, group),
        reason=reason,
        key=(events.aggregate_id(order) if order else key).encode(),
    )


def _places(command: str, ids: list[str] | None, wanted: "Filter", *, every: bool) -> list["Place"]:
    if not (ids or wanted or every):
        raise UsageError(f"`dlq {command}` needs ids, a filter or --all", hint="see `brewctl dlq list`")
    if ids and (wanted or every):
        raise UsageError(f"`dlq {command}` takes ids, or a filter or --all", hint="give one of them")
    return [_place(each) for each in dict.fromkeys(ids or [])]


def _place(letter_id: str) -> "Place":
    """Parse an id: of a parked event, or a dead letter's partition and offset. Raises UsageError."""
    if name := dlq_parked.name(letter_id):
        return name
    if not (match := _ID.fullmatch(letter_id)):
        raise UsageError(
            f"{letter_id[:80]!r} is no dead letter's id",
            hint="use PARTITION:OFFSET, or p1, p2@loyalty, …: see `brewctl dlq list`",
        )
    return int(match[1]), int(match[2])


def _chosen(letters: "DeadLetters", places: Sequence["Place"], wanted: "Filter") -> Iterable["Letter"]:
    # All ids are looked up first, so that nothing is changed if one is unknown.
    if places:
        return [letters.get(*place) for place in places if not isinstance(place, dlq_parked.Name)]
    return letters.find(wanted)


def _chosen_parked(homes: dlq_parked.Homes, places: Sequence["Place"], wanted: "Filter") -> list["ParkedEvent"]:
    if places:
        return homes.get([place for place in places if isinstance(place, dlq_parked.Name)])
    found, away = homes.find(wanted, settled=False)
    if away:  # nothing has been changed yet
        raise away
    return found


def _report(verb: str, settled: "Settlement", outcome: "ParkingResult", before: Sequence["ParkedEvent"]) -> None:
    for letter in settled.before:
        output.note(f"{letter.id} {dlq_shown.state(letter)} before")
    for letter, why in settled.refused:
        output.note(f"{letter.id} stays: {output.plain(why)}")
    for parked in before:
        output.note(f"{dlq_shown.name(parked)} {parked.outcome} before")
    for parked, why in outcome.refused:
        output.note(f"{dlq_shown.name(parked)} and what waits behind it stay: {output.plain(why)}")
    done, already = len(settled.done) + len(outcome.done), len(settled.before) + len(before)
    refused = len(settled.refused) + len(outcome.refused)
    output.emit(f"{verb}={done} already={already} refused={refused}")
    if refused:
        raise typer.Exit(ExitCode.FAILED)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    dlq = typer.Typer(help="Dead letters and parked events: what a consumer set aside.", no_args_is_help=True)
    dlq.command("list", epilog="Example: brewctl dlq list --group inventory --reason outbox-id")(show_all)
    dlq.command(epilog="Example: brewctl dlq show 0:12")(show)
    dlq.command(epilog="Example: brewctl dlq redrive --group inventory --reason 'no stock'")(redrive)
    dlq.command(epilog="Example: brewctl dlq drop 0:12 3:4")(drop)
    app.add_typer(dlq, name="dlq")
