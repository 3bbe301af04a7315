"""A ledger of effects: one row each time an effect is done, so that one done twice is seen.

The story's own tables can't show it: their key is the order's id, and an effect skips an order that is there.
`python -m brewctl.lab.chaos.ledger ARGUMENTS` is `brewctl ARGUMENTS`, and its inbox also inserts what it hands to the
effect into a table without a key, in the same statement and so in the same commit. `verify` counts the rows of that
table where it exists.
"""

import runpy

from brewctl.delivery.database import Connection
from brewctl.sql import queries

MODULE = "brewctl.lab.chaos.ledger"


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
