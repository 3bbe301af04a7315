"""What the shell completes: names of roles, nodes and groups, ids of orders; none where they are not known at once."""

from collections.abc import Callable, Iterable
from contextlib import suppress

import typer

from brewctl import config
from brewctl.cli import options
from brewctl.limits import Limits

_ORDERS = 20
# Somebody waits with a finger on the key.
_HASTY = Limits(
    database_connect_s=2,
    database_statement_s=3,
    database_answer_s=4.0,
    kafka_connect_s=1.0,
    kafka_admin_s=1.0,
    kafka_patience_s=1.0,
)


def roles(incomplete: str) -> list[str]:
    """Offer the roles, and the downstreams that the settings name."""
    from brewctl.lab.play.nodes import ROLES

    def named() -> list[str]:
        return [config.short_name(name) for name in options.configured_downstreams()]

    known = _beginning(incomplete, lambda: (*ROLES, *config.SHORT_NAMES))
    return list(dict.fromkeys([*known, *_beginning(incomplete, named)]))


def nodes(incomplete: str) -> list[str]:
    """Offer the background nodes that were not stopped."""
    from brewctl.lab.play import background

    return _beginning(incomplete, lambda: background.nodes(config.home()))


def logged_nodes(incomplete: str) -> list[str]:
    """Offer the background nodes that have a log, ended ones too."""
    from brewctl.lab.play import logs

    return _beginning(incomplete, lambda: logs.known(config.home()))


def places(incomplete: str) -> list[str]:
    """Offer the places in a topic that have a name."""
    return _beginning(incomplete, lambda: ("earliest", "latest"))


def groups(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer Kafka's consumer groups; the downstreams', where Kafka does not answer."""
    from brewctl.delivery import registry
    from brewctl.delivery.broker import open_admin

    def asked() -> list[str]:
        with open_admin(options.settings(brokers=ctx.params.get("brokers"), limits=_HASTY)) as admin:
            return admin.groups()

    return _beginning(incomplete, lambda: _quietly(asked) or registry.kafka_groups(options.settings()))


def orders(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the newest orders whose ids begin so, whichever way that is written."""
    from brewctl.delivery import database
    from brewctl.overview import reading

    def newest() -> list[str]:
        first, last = reading.bounds(incomplete or "0")  # ids begin with their time
        settings = options.settings(database_url=ctx.params.get("database_url"), limits=_HASTY)
        with database.connect(settings) as connection:
            return [str(order_id) for order_id in reading.newest(connection, first, last, limit=_ORDERS)]

    return _quietly(newest)


def _beginning(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    return [name for name in _quietly(names) if name.startswith(incomplete)]


def _quietly(names: Callable[[], Iterable[str]]) -> list[str]:
    with suppress(Exception):  # whatever it is, it would be written over what the user types
        return list(names())
    return []
