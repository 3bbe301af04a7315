"""`brewctl trace`: the steps of one order, and what it waits for."""

import textwrap
from collections.abc import Iterable
from datetime import UTC
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from brewctl.cli import completion, options, output
from brewctl.errors import BrewError, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings
    from brewctl.overview.standing import OrderView
    from brewctl.overview.trace import Life, Step

_WIDTH = 80
TIMEOUT_S = 60.0


def trace(
    order_id: Annotated[
        str,
        typer.Argument(
            help="Order id, or the beginning of it.",
            metavar="ORDER_ID",
            autocompletion=completion.orders,
            show_default=False,
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait until it is finished; exit 1 if it can't be, or is late.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(help=f"How long --follow waits. \\[default: {TIMEOUT_S:g}]", metavar="SECONDS", min=0, max=86400),
    ] = None,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Show the steps of an order, and what it still waits for.

    Milliseconds are counted from the line before.

    Records before a waiting one are counted from the group's committed offset, which is up to a second old.
    """
    if timeout is not None and not follow:
        raise UsageError("--timeout is how long --follow waits", hint="give --follow too")
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic, downstreams=downstream)
    from brewctl.delivery import database
    from brewctl.delivery.schema import registration
    from brewctl.overview import standing
    from brewctl.overview.reading import bounds, find

    bounds(order_id)  # raises UsageError even if the servers are away
    with database.connect(settings) as connection:
        registration.require_story(settings, connection)
        found = find(connection, order_id)
        look = None if follow else standing.look(settings, connection, found)
    if look is None:
        wait_for(settings, found, timeout_s=TIMEOUT_S if timeout is None else timeout, as_json=as_json)
        return
    _Timeline(as_json=as_json).end(look)
    if look.unknown and not look.life.finished:
        raise look.unknown


def wait_for(settings: "Settings", order_id: UUID, *, timeout_s: float = TIMEOUT_S, as_json: bool = False) -> None:
    """Show an order's steps as they come, until it is finished.

    Raises BrewError if it can't be finished by itself, or is not within `timeout_s` seconds.
    """
    from brewctl.overview.follow import follow

    timeline = _Timeline(as_json=as_json)
    look: OrderView | None = None
    for seen in follow(settings, order_id, timeout_s=timeout_s):
        if isinstance(seen, BrewError):
            output.note(f"{seen.message}; waiting for it …")
        else:
            look = seen
            timeline.add(seen)
    assert look is not None  # `follow` raises if it times out before the first look
    timeline.end(look)
    if not look.life.finished:
        stuck = all(each.stuck for each in look.standings)
        commands = [each.command for each in look.standings if each.command]
        raise BrewError(
            f"order {order_id} {'does not finish by itself' if stuck else f'is not finished after {timeout_s:g} s'}",
            hint=f"run `{commands[0]}`" if commands else "",
        )


class _Timeline:
    """Prints each step once, as it comes; as JSON, all of them in the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: list[Step] = []
        self._said: set[str] = set()

    def add(self, look: "OrderView") -> None:
        """Print new steps, and on stderr what the order waits for, if that is new."""
        if not self._as_json:
            self._print_steps(look.life)
        for each in look.standings:
            if each.text not in self._said:
                self._said.add(each.text)
                output.note(output.plain(each.text))

    def end(self, look: "OrderView") -> None:
        """Print the remaining steps, then how the order ended, or what it waits for and the command that helps."""
        if self._as_json:
            output.emit_json(_document(look))
            return
        self._print_steps(look.life)
        if look.life.finished:
            output.emit(_finished(look.life))
            if look.unknown:
                output.note(f"its dead letters, if any, are not known: {look.unknown.message}")
        for each in look.standings:
            if each.text not in self._said:
                output.emit(textwrap.fill(output.plain(each.text), _WIDTH, break_long_words=False))
                if each.command:
                    output.note(f"next: {output.plain(each.command)}")
        self._explain({downstream.verb for downstream in look.life.downstreams})

    def _print_steps(self, life: "Life") -> None:
        if not self._shown:
            order = life.order
            said = f"{order.amount_cents} cents {order.currency}  customer {order.customer_id}"
            output.emit(output.fitted(f"order {order.id}  {said}", _WIDTH))
            output.emit(f"since {order.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC")
        for step in life.steps():
            if step not in self._shown:
                gap = round(step.after_ms(self._shown[-1])) if self._shown else 0
                self._shown.append(step)
                shown = f"{gap:+d}" if gap else "0"
                output.emit(output.fitted(f"{shown:>9} ms  {step.what:<9}  {step.detail}", _WIDTH))

    def _explain(self, verbs: set[str]) -> None:
        """Explain steps that look wrong but are not."""
        if any(round(later.after_ms(step)) < 0 for step, later in pairwise(self._shown)):
            output.note("less than 0 ms: two machines' clocks differ, or it was seen later than it happened")
        whats = [step.what for step in self._shown]
        if "published" in whats and not {*verbs, "handled"}.isdisjoint(whats[: whats.index("published")]):
            output.note("published is when its node knew of Kafka's acknowledgement: a consumer can be quicker")


def _finished(life: "Life") -> str:
    if life.dropped:
        what = f"its outbox row, of an id below {life.order.dropped_below}, was dropped by retention"
        return f"finished: {what} once every group had processed it"
    *done, last = "published", *life.done
    all_done = f"{', '.join(done)} and {last}" if done else last
    if life.cancelled:
        return f"finished {life.took_ms:.0f} ms after its cancel: {all_done}"
    return f"finished after {life.took_ms:.0f} ms: {all_done} once"


def _document(look: "OrderView") -> dict[str, object]:
    order = look.life.order
    return {
        "order_id": str(order.id),
        "tenant_id": order.tenant_id,
        "customer_id": order.customer_id,
        "amount_cents": order.amount_cents,
        "currency": order.currency,
        "status": order.status,
        "trace_id": look.life.trace_id or None,
        "finished": look.life.finished,
        "took_ms": round(look.life.took_ms, 3) if look.life.finished else None,
        "steps": list(_steps(look.life.steps())),
        "standing": [
            {"text": each.text, "command": each.command or None, "stuck": each.stuck} for each in look.standings
        ],
        "unknown": look.unknown and look.unknown.message,
    }


def _steps(steps: "Iterable[Step]") -> "Iterable[dict[str, object]]":
    before = None
    for step in steps:
        yield {
            "at": step.at.astimezone(UTC).isoformat(timespec="microseconds"),
            "after_ms": round(step.after_ms(before or step), 3),
            "what": step.what,
            "detail": step.detail,
            "node": step.node or None,
            "group": step.group or None,
            "outbox_id": step.outbox_id,
            "partition": step.partition,
            "offset": step.offset,
        }
        before = step


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl trace 0199c2f4 --follow")(trace)
