"""Shell completion of roles, nodes, groups and order ids. Offers nothing if a server does not answer soon."""

from collections.abc import Callable, Iterable
from contextlib import suppress

import typer

from brewctl import config
from brewctl.cli import options
from brewctl.limits import Limits

_ORDERS = 20
# The user waits for the answer to a key: these bounds are short.
_HASTY = Limits(
    database_connect_s=2,
    database_statement_s=3,
    database_answer_s=4.0,
    kafka_connect_s=1.0,
    kafka_admin_s=1.0,
    kafka_patience_s=1.0,
)


def roles(incomplete: str) -> list[str]:
    """Complete the roles, and the downstreams that the settings name."""
    from brewctl.lab.play.nodes import ROLES

    def named() -> list[str]:
        return [config.short_name(name) for name in options.configured_downstreams()]

    known = _beginning(incomplete, lambda: (*ROLES, *config.SHORT_NAMES))
    return list(dict.fromkeys([*known, *_beginning(incomplete, named)]))


def nodes(incomplete: str) -> list[str]:
    """Complete the names of background nodes that were not stopped."""
    from brewctl.lab.play import background

    return _beginning(incomplete, lambda: background.nodes(config.home()))


def logged_nodes(incomplete: str) -> list[str]:
    """Complete the names of background nodes with a log, ended ones too."""
    from brewctl.lab.play import logs

    return _beginning(incomplete, lambda: logs.known(config.home()))


def places(incomplete: str) -> list[str]:
    """Complete the places in a topic that have a name."""
    return _beginning(incomplete, lambda: ("earliest", "latest"))


def groups(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete Kafka's consumer groups, or the downstreams' groups if Kafka does not answer."""
    from brewctl.delivery import registry
    from brewctl.delivery.broker import open_admin

    def asked() -> list[str]:
        with open_admin(options.settings(brokers=ctx.params.get("brokers"), limits=_HASTY)) as admin:
            return admin.groups()

    return _beginning(incomplete, lambda: _quietly(asked) or registry.kafka_groups(options.settings()))


def orders(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the ids of the newest orders that begin with the typed text."""
    from brewctl.delivery import database
    from brewctl.overview import reading

    def newest() -> list[str]:
        first, last = reading.bounds(incomplete or "0")  # an id begins with its time of creation
        settings = options.settings(database_url=ctx.params.get("database_url"), limits=_HASTY)
        with database.connect(settings) as connection:
            return [str(order_id) for order_id in reading.newest(connection, first, last, limit=_ORDERS)]

    return _quietly(newest)


def _beginning(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    return [name for name in _quietly(names) if name.startswith(incomplete)]


def _quietly(names: Callable[[], Iterable[str]]) -> list[str]:
    with suppress(Exception):  # an error message would be written into the user's command line
        return list(names())
    return []
