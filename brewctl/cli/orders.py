"""`brewctl create-order`: orders, from the command line."""

import sys
import uuid
from typing import Annotated

import typer

from brewctl.cli import options, output
from brewctl.cli.trace import wait_for


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

        # Now: nobody is left with an order that he can't follow.
        with database.connect(settings) as connection:
            database.check_schema(connection)
    with OrderClient(settings.order_addrs, tenant=tenant, timeout_s=timeout, on_retry=_Once()) as client:
        for number in range(1, count + 1):
            key = f"{idempotency_key}-{number}" if idempotency_key and count > 1 else idempotency_key
            key = key or uuid.uuid4().hex
            order_id = client.create(customer, amount_cents=amount_cents, currency=currency, idempotency_key=key)
            if as_json:
                output.emit_json({"order_id": order_id, "status": "ORDER_STATUS_NEW", "idempotency_key": key})
            elif not trace:
                output.emit(order_id)
            if trace:
                wait_for(settings, uuid.UUID(order_id), as_json=as_json)


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
