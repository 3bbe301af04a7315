"""A ledger of effects: a table with a row for each time that an effect was done, which shows doubled effects.

The story's own tables can't show them: the order's id is their key, and an effect skips orders that have a row.
`python -m brewctl.lab.chaos.ledger ARGUMENTS` runs `brewctl ARGUMENTS` with an inbox that also inserts the events that
it hands to the effect into the ledger, in the same statement and so in the same commit. `verify` counts the ledger's
rows if the table exists.
"""

import runpy

from brewctl.delivery.database import Connection
from brewctl.sql import queries

MODULE = "brewctl.lab.chaos.ledger"


def create(connection: Connection) -> None:
    """Create an empty ledger; drop that of an earlier run."""
    drop(connection)
    connection.execute(
        "CREATE TABLE effect_ledger"
        " (consumer text NOT NULL, outbox_id bigint NOT NULL, node_id text NOT NULL,"
        " written_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )


def drop(connection: Connection) -> None:
    """Drop the ledger, which would become incomplete through nodes that do not write to it."""
    connection.execute("DROP TABLE IF EXISTS effect_ledger")


def keep() -> None:
    """Let the inboxes of this process write to the ledger."""
    queries["inbox"] += (
        ", kept AS (INSERT INTO effect_ledger (consumer, outbox_id, node_id)"
        " SELECT %(consumer)s, outbox_id, %(node)s FROM fresh)"
    )


if __name__ == "__main__":
    keep()
    runpy.run_module("brewctl", run_name="__main__", alter_sys=True)
