"""`brewctl outbox …`: rows that wait to be published, that Kafka refused, or whose records are lost."""

from typing import Annotated

import typer

from brewctl.cli import options, output
from brewctl.cli.republish import republish
from brewctl.errors import BrewError, UsageError

_WIDTH = 80
_AGGREGATE = 42  # `order-` and a UUID


def show(
    failed: Annotated[bool, typer.Option("--failed", help="Only rows that were set aside.")] = False,
    limit: Annotated[int, typer.Option(help="Show at most this many rows.", min=1)] = 100,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
) -> None:
    """List unpublished rows, oldest first, and what each waits for."""
    settings = options.settings(database_url=database_url)
    from brewctl.delivery import database
    from brewctl.delivery.repair import outbox_rows
    from brewctl.delivery.schema import registration

    with database.connect(settings) as connection:
        registration.require_story(settings, connection)
        rows = outbox_rows.waiting(connection, failed=failed, limit=limit + 1)
    if not rows:
        output.note("nothing is set aside" if failed else "every row is published")
    elif not as_json:
        output.emit(f"{'id':>8}  {'age':>5}  {'aggregate':<{_AGGREGATE}}  state")
    for row in rows[:limit]:
        if as_json:
            output.emit_json(
                {
                    "id": row.id,
                    "aggregate_id": row.aggregate_id,
                    "topic": row.topic,
                    "bytes": row.bytes,
                    "age_s": round(row.age_s, 3),
                    "state": "set aside" if row.set_aside else "ready" if row.head == row.id else "behind",
                    "behind": row.head if row.head != row.id else None,
                    "attempts": row.attempts,
                    "failure": row.failure,
                }
            )
        else:
            aggregate = output.fitted(row.aggregate_id, _AGGREGATE)
            output.emit(f"{row.id:>8}  {_age(row.age_s):>5}  {aggregate:<{_AGGREGATE}}  {row.state}")
            if row.failure:
                refused = f"refused {row.attempts} time{'' if row.attempts == 1 else 's'}"
                output.emit(f"{'':>17}{output.fitted(f'{refused}: {row.failure}', _WIDTH - 17)}")
    if len(rows) > limit:
        output.note(f"there are more: --limit {limit * 10}")
    if any(row.set_aside for row in rows):
        output.note("next: mend the cause, then `brewctl outbox retry --all`, or name rows")


def retry(
    ids: Annotated[list[int] | None, typer.Argument(help="Rows that were set aside.", metavar="ID…")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every row that was set aside.")] = False,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Put rows that were set aside back into the queue.

    Exit 1 where one of them was not set aside.
    """
    if bool(ids) == every:
        raise UsageError("`outbox retry` needs ids or --all", hint="see `brewctl outbox list --failed`")
    settings = options.settings(database_url=database_url)
    from brewctl.delivery import database
    from brewctl.delivery.repair import outbox_rows
    from brewctl.delivery.schema import registration

    with database.connect(settings) as connection:
        registration.require_story(settings, connection)
        retried = outbox_rows.retry(connection, None if every else ids)
    if retried:
        output.emit(f"back in the queue: {', '.join(map(str, retried))}")
    elif every:
        output.emit("nothing to retry")
    if others := sorted(set(ids or []) - set(retried)):
        raise BrewError(f"not set aside: {', '.join(map(str, others))}", hint="see `brewctl outbox list --failed`")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    outbox = typer.Typer(help="Rows that wait for Kafka.", no_args_is_help=True)
    outbox.command("list", epilog="Example: brewctl outbox list --failed")(show)
    outbox.command(epilog="Example: brewctl outbox retry --all")(retry)
    outbox.command(epilog="Example: brewctl outbox republish --missing --dry-run")(republish)
    app.add_typer(outbox, name="outbox")
