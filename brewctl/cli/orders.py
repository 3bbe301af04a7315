"""`brewctl create-order` and `cancel-order`."""

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
    customer: Annotated[str, typer.Option(help="Customer id, 1 to 128 characters.", show_default=False)],
    amount_cents: Annotated[int, typer.Option(help="Price, 1 to 10^12.")] = 450,
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "EUR",
    count: Annotated[int, typer.Option(help="How many orders.", min=1)] = 1,
    idempotency_key: Annotated[
        str,
        typer.Option(
            help="With a used key, return the order that it created. Several orders get KEY-1, KEY-2, …",
            metavar="KEY",
            show_default="a new one for each order",
        ),
    ] = "",
    tenant: Annotated[str, typer.Option(help="Tenant of the order and of its key.", show_default="brew")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for each order, with its retries.", min=0.1, max=3600)] = 10.0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Follow each order, as `brewctl trace --follow`, before the next.")
    ] = False,
    addr: options.Addr = None,
    as_json: options.AsJson = False,
) -> None:
    """Create orders and print their ids, each once it is committed.

    A call without an answer is retried with the same idempotency key.
    """
    settings = options.settings(order_addrs=",".join(addr or []))
    from brewctl.client import OrderClient

    if trace:
        from brewctl.delivery import database
        from brewctl.delivery.schema import registration

        # Before the first order, so that no order is created that can't be followed.
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
            help="Order ids, or the beginnings of them.",
            metavar="ORDER_ID...",
            autocompletion=completion.orders,
            show_default=False,
        ),
    ],
    reason: Annotated[str, typer.Option(help="Reason, up to 500 characters.", show_default=False)] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for each order, with its retries.", min=0.1, max=3600)] = 10.0,
    addr: options.Addr = None,
    as_json: options.AsJson = False,
    database_url: options.DatabaseUrl = None,
) -> None:
    """Cancel orders and print their ids, each once it is committed.

    An order that was cancelled before stays as it is, and is printed too.

    PostgreSQL is needed only if an id is not given in full.

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
                raise  # the next order would fail in the same way
            except BrewError as error:
                failed.append(error)
                continue
            # Not `emit`, which ends the command if stdout is closed (`| head -1`): the other orders are cancelled too.
            stdout.put(json.dumps({"order_id": order_id, "status": status}) if as_json else order_id)
    if len(order_ids) == 1 and failed:
        raise failed[0]
    if failed:
        _tell(failed)
        raise BrewError(f"{len(failed)} of {len(order_ids)} orders were not cancelled", hint=failed[0].hint)


def _tell(failed: list[BrewError]) -> None:
    """Print why orders were not cancelled, one line each."""
    for each in failed:
        output.note(each.message)


def _in_full(settings: "Settings", texts: list[str], failed: list[BrewError]) -> list[str]:
    """Return the full ids for these beginnings. Adds an error to `failed` for one that matches no single order."""
    from brewctl.delivery import database
    from brewctl.delivery.schema import registration
    from brewctl.overview.reading import bounds, find

    ranges = [bounds(text) for text in texts]  # raises UsageError before anything is cancelled
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
    """Notes in a terminal why a call is retried: only at the first retry."""

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
