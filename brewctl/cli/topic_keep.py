"""`brewctl topic keep`: show or set how long the topic keeps its records."""

from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output
from brewctl.errors import BrewError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.delivery.broker import Admin
    from brewctl.delivery.topics.keeping import Kept

_FROM = {"topic": "set on the topic", "broker": "set on the brokers", "default": "kafka's default"}


def keep(
    how_long: Annotated[
        str | None,
        typer.Argument(
            help="Days such as 7 or 7d, 36h, or forever; without it: show.", metavar="[7d|forever]", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before records are removed.")] = False,
    as_json: options.AsJson = False,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Show or set how long the topic keeps its records.

    A new downstream gets the records of this time. A group may stop for as long without losing records.

    Kafka removes whole segments. They are set to a seventh of the time, so records may stay that much longer.

    Size limits and compaction are removed from the topic, as they remove records of any age.
    """
    from brewctl.delivery.broker import open_admin
    from brewctl.delivery.topics import keeping

    wanted = None if how_long is None else keeping.parse(how_long)
    settings = options.settings(brokers=brokers, topic=topic, downstreams=downstream)
    with open_admin(settings) as admin:
        if wanted is not None:
            _confirm(admin, settings, wanted, yes=yes)
            admin.configure(settings.topic, keeping.wanted(wanted))
        kept = keeping.look(admin, settings.topic)
    if as_json:
        output.emit_json({"topic": settings.topic, "settings": _json(kept)})
    else:
        _print(kept)
    for problem in kept.problems():
        output.note(f"{problem}: `brewctl topic keep {keeping.words(kept.keep_ms)}` removes that setting")


def _confirm(admin: "Admin", settings: "Settings", wanted: int, *, yes: bool) -> None:
    """Ask before the new time removes records that would have stayed."""
    from brewctl.delivery.topics import keeping
    from brewctl.overview import consumer_groups

    if wanted < 0 or yes:
        return
    try:
        now = keeping.look(admin, settings.topic).keep_ms
    except BrewError:  # this user may not read the setting, or the topic is missing, which the change reports
        now = keeping.FOREVER_MS
    if 0 <= now <= wanted:
        return
    said = f"this removes the records of {settings.topic} that are older than {keeping.words(wanted)}"
    positions = {view.name: view.positions for view in consumer_groups.groups(admin, settings)}
    if unread := keeping.unread(admin, settings.topic, positions, older_ms=wanted):
        said += f", of them unread: {', '.join(f'{count} by {group}' for group, count in unread.items())}"
    options.confirm(said, yes=yes)


def _print(kept: "Kept") -> None:
    from brewctl.delivery.topics import keeping

    readable = {
        "retention.ms": keeping.words(int(kept.settings["retention.ms"].value)),
        "retention.bytes": "no limit" if kept.most_bytes < 0 else "",
        "segment.ms": keeping.words(kept.segment_ms),
    }
    for name, each in kept.settings.items():
        value = readable.get(name) or each.value
        output.emit(f"{name:<23} {value:<14} {_FROM[each.source]}")


def _json(kept: "Kept") -> dict[str, dict[str, str]]:
    return {name: {"value": each.value, "from": each.source} for name, each in kept.settings.items()}
