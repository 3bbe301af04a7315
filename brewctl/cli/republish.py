"""`brewctl outbox republish`: publish rows again whose records are gone."""

from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output
from brewctl.errors import BrewError, UsageError

if TYPE_CHECKING:
    from brewctl.delivery.database import Connection
    from brewctl.delivery.repair.republish import Search

_WHY = {
    "removed": "removed before the group read them",
    "cut off": "no longer in the topic: it was truncated or recreated",
    "passed": "skipped by the group",
}


def republish(
    ids: Annotated[list[int] | None, typer.Argument(help="Published rows.", metavar="ID…")] = None,
    missing: Annotated[
        bool,
        typer.Option("--missing", help="All published rows that a group has not processed and can't get any more."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Publish rows again that were published before.

    --missing finds rows whose records were removed, by retention or a truncation, or skipped by a reset of offsets,
    before a group had processed them. Dead letters are not among them.

    Rows are published in the order of their ids. An old event then follows newer events of its key.

    Groups that have processed an event skip it by its outbox id. Exit 1 where a named row was not published before.
    """
    if bool(ids) == missing:
        raise UsageError("`outbox republish` needs ids or --missing", hint="see `brewctl outbox republish --help`")
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic, downstreams=downstream)
    from brewctl.delivery import database
    from brewctl.delivery.repair import republish as rows
    from brewctl.delivery.schema import registration

    with database.connect(settings) as connection:
        registration.require_story(settings, connection)
        search = rows.Search(settings, connection) if missing else None
        wanted = _show(search) if search else len(set(ids or []))
        if wanted and not dry_run:
            many = "a row" if wanted == 1 else f"{wanted} rows"
            options.confirm(f"this publishes {many} again, behind newer events of the same keys", yes=yes)
        done, others = (0, []) if dry_run else _publish(connection, search, ids or [])
    if dry_run:
        output.emit(f"missing={wanted}" if missing else f"named={wanted}")
        output.note("nothing was changed: this was a dry run")
        return
    output.emit(f"republished={done}")
    if done:
        output.note("publishers take them now; where none runs: `brewctl start order`")
    if others:
        raise BrewError(f"not published: {', '.join(map(str, others))}", hint="see `brewctl outbox list`")


def _show(search: "Search") -> int:
    """Print how many rows each group lacks, and why; return the number of rows."""
    from brewctl.delivery.repair.republish import Summary

    found = Summary()
    for page in search.pages():
        found.add(page)
    for (group, why), count in sorted(found.lacking.items()):
        output.emit(f"{group:<13} lacks {count:>8}: {_WHY[why]}")
    return found.rows


def _publish(connection: "Connection", search: "Search | None", ids: list[int]) -> tuple[int, list[int]]:
    """Put rows back into the queue, a page at a time. Returns their number, and the named ids that were not published.

    After an interruption the next run finds the rest.
    """
    from brewctl.delivery.repair import republish

    if search is None:
        done = republish.again(connection, ids)
        return len(done), sorted(set(ids) - set(done))
    return sum(len(republish.again(connection, [row.id for row in page])) for page in search.pages() if page), []
