"""`brewctl create-order` and `cancel-order`: orders, from the command line."""

import json
import sys
import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl import stdout
from brewctl.cli import completion, options, output
from brewctl.cli.trace import wait_for
from brewctl.errors import BrewError, UnreachableError, UsageError

if TYPE_CHECKING:
    from brewctl.config import Settings


def create_order(
    customer: Annotated[str, typer.Option(help="Who orders: 1 to 128 characters.", show_default=False)],
    amount_cents: Annotated[int, typer.Option(help="Price, 1 to 10^12.")] = 450,
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "EUR",
    count: Annotated[int, typer.Option(help="How many orders.", min=1)] = 1,
    idempotency_key: Annotated[
        str,
        typer.Option(
            help="Returns the order that it made before, if it did. Several orders have KEY-1, KEY-2, …",
            metavar="KEY",
            show_default="a new one for each order",
        ),
    ] = "",
    tenant: Annotated[str, typer.Option(help="Whose order, and whose key, it is.", show_default="brew")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for each order, with its retries.", min=0.1, max=3600)] = 10.0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Follow each, as `brewctl trace --follow` does, before the next.")
    ] = False,
    addr: options.Addr = None,
    as_json: options.AsJson = False,
) -> None:
    """Create orders and print their ids, each once it is committed.

    An answer that is lost is asked for again.
    """
    settings = options.settings(order_addrs=",".join(addr or []))
    from brewctl.client import OrderClient

    if trace:
        from brewctl.delivery import database
        from brewctl.delivery.schema import registration

        # Now: nobody is left with an order that he can't follow.
        with database.connect(settings) as connection:
            registration.require_story(settings, connection)
    with OrderClient(
        settings.order_addrs,
        tenant=tenant,
        timeout_s=timeout,
        on_retry=_Once(),
        security=settings.order_security,
    ) as client:
        for number in range(1, count + 1):
            key = f"{idempotency_key}-{number}" if idempotency_key and count > 1 else idempotency_key
            key = key or uuid.uuid4().hex
            placed = client.place(customer, amount_cents=amount_cents, currency=currency, idempotency_key=key)
            order_id = placed.order_id
            if as_json:
                output.emit_json({**placed._asdict(), "idempotency_key": key})
            elif not trace:
                output.emit(order_id)
            if trace:
                wait_for(settings, uuid.UUID(order_id), as_json=as_json)


def cancel_order(
    order_ids: Annotated[
        list[str],
        typer.Argument(
            help="The orders, or the beginning of the id of each.",
            metavar="ORDER_ID...",
            autocompletion=completion.orders,
            show_default=False,
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why: up to 500 characters.", show_default=False)] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for each order, with its retries.", min=0.1, max=3600)] = 10.0,
    addr: options.Addr = None,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Cancel orders and print their ids, each once it is committed.

    An order that is cancelled already is left as it is, and printed too.

    PostgreSQL is asked only where an id is not given in full.

    Exit 1 where an order is not there: the others are cancelled all the same.
    """
    settings = options.settings(database_url=database_url, order_addrs=",".join(addr or []))
    from brewctl.client import OrderClient

    failed: list[BrewError] = []
    wanted = _in_full(settings, order_ids, failed)
    with OrderClient(
        settings.order_addrs, timeout_s=timeout, on_retry=_Once(), security=settings.order_security
    ) as client:
        for order_id in wanted:
            try:
                status = client.cancel(order_id, reason=reason)
            except (UsageError, UnreachableError):
                _tell(failed)
                raise  # so would the next one be
            except BrewError as error:
                failed.append(error)
                continue
            # Not `emit`, which ends the command where the reader has gone (`| head -1`): the others are cancelled too.
            stdout.put(json.dumps({"order_id": order_id, "status": status}) if as_json else order_id)
    if len(order_ids) == 1 and failed:
        raise failed[0]
    if failed:
        _tell(failed)
        raise BrewError(f"{len(failed)} of {len(order_ids)} orders were not cancelled", hint=failed[0].hint)


def _tell(failed: list[BrewError]) -> None:
    """Say why orders were not cancelled, one line each."""
    for each in failed:
        output.note(each.message)


def _in_full(settings: "Settings", texts: list[str], failed: list[BrewError]) -> list[str]:
    """Return the ids that these, or the beginnings of them, mean; why one means none is added to `failed`."""
    from brewctl.delivery import database
    from brewctl.delivery.schema import registration
    from brewctl.overview.reading import bounds, find

    ranges = [bounds(text) for text in texts]  # misuse, before anything is cancelled
    if all(first == last for first, last in ranges):
        return [str(first) for first, _ in ranges]
    found = []
    with database.connect(settings) as connection:
        registration.require_story(settings, connection, reading=True)
        for text in texts:
            try:
                found.append(str(find(connection, text)))
            except UnreachableError:
                raise
            except BrewError as error:
                failed.append(error)
    return found


class _Once:
    """Says in a terminal that it takes longer, and why: once, however many retries there are."""

    def __init__(self) -> None:
        self._said = not sys.stderr.isatty()

    def __call__(self, why: str) -> None:
        if not self._said:
            self._said = True
            output.note(f"{why}; trying again …")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Example: brewctl create-order --customer c1 --count 10 --addr 127.0.0.1:50081 --addr 127.0.0.1:50082"
    )(create_order)
    app.command(epilog='Example: brewctl cancel-order 0199c2f4 --reason "out of beans"')(cancel_order)
