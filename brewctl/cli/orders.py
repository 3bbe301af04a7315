"""`brewctl create-order`: orders, from the command line."""

from typing import Annotated

import typer

from brewctl.cli import options, output


def create_order(
    customer: Annotated[str, typer.Option(help="Who orders: 1 to 128 characters.", show_default=False)],
    amount_cents: Annotated[int, typer.Option(help="Price, 1 to 10^12.")] = 450,
    currency: Annotated[str, typer.Option(help="ISO 4217 code.")] = "EUR",
    count: Annotated[int, typer.Option(help="How many orders.", min=1)] = 1,
    addr: Annotated[
        list[str] | None,
        typer.Option(
            help="An order-service; several take turns. [env: BREW_ORDER_ADDRS] [default: 127.0.0.1:50081]",
            metavar="HOST:PORT",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Create orders and print their ids, each once it is committed."""
    settings = options.settings(order_addrs=",".join(addr or []))
    from brewctl.client import OrderClient

    with OrderClient(settings.order_addrs) as client:
        for _ in range(count):
            order_id = client.create(customer, amount_cents=amount_cents, currency=currency)
            if as_json:
                output.emit_json({"order_id": order_id, "status": "ORDER_STATUS_NEW"})
            else:
                output.emit(order_id)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Example: brewctl create-order --customer c1 --count 10 --addr 127.0.0.1:50081 --addr 127.0.0.1:50082"
    )(create_order)
