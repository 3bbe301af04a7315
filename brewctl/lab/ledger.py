"""A ledger of effects, one row each time one is done: what the story's own tables can't show.

Their key is the order's id, and an effect passes over what is there: done twice it looks as if it was done once.
`python -m brewctl.lab.ledger ARGUMENTS` is `brewctl ARGUMENTS` whose inbox also writes what it hands to the effect into
a table without a key, in the same statement and so in the same commit. Where that table is,
`verify` counts its rows.
"""

import runpy

from brewctl.delivery.database import Connection
from brewctl.sql import queries

MODULE = "brewctl.lab.ledger"


def create(connection: Connection) -> None:
    """Make an empty ledger; an earlier run's is dropped."""
    drop(connection)
    connection.execute(
        "CREATE TABLE effect_ledger"
        " (consumer text NOT NULL, outbox_id bigint NOT NULL, node_id text NOT NULL,"
        " written_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )


def drop(connection: Connection) -> None:
    """Remove the ledger: whoever works without it leaves gaps in it."""
    connection.execute("DROP TABLE IF EXISTS effect_ledger")


def keep() -> None:
    """Let this process's inboxes keep the ledger."""
    queries["inbox"] += (
        ", kept AS (INSERT INTO effect_ledger (consumer, outbox_id, node_id)"
        " SELECT %(consumer)s, outbox_id, %(node)s FROM fresh)"
    )


if __name__ == "__main__":
    keep()
    runpy.run_module("brewctl", run_name="__main__", alter_sys=True)
