"""Makes a plain table a partitioned one while roles use it.

bound ──► validate ──► swap       the steps of partition_table() in 0004_partitions.sql
            │             └── the table is locked for a moment, in which the partitioned one gets its name
            └── all rows are read; no reader and no writer waits
"""

from typing import TYPE_CHECKING, LiteralString

import psycopg

from brewctl.delivery.database.table_locks import Holder, Tell, bounded, holders, in_use, nobody, until_free
from brewctl.errors import BrewError
from brewctl.sql import queries

if TYPE_CHECKING:
    from brewctl.delivery.database import BoundedConnection, Connection

# The locks of the steps, for a plan.
LOCKS = (
    "ACCESS EXCLUSIVE twice, for moments: to add a CHECK, and to give the partitioned table the name; between them"
    " SHARE UPDATE EXCLUSIVE while all rows are checked, which holds up no reader and no writer"
)
_STEPS: tuple[LiteralString, ...] = ("'bound'", "'validate'", "'swap'")
_TRIES = 3


def partition(connection: "BoundedConnection", table: str, swap: LiteralString, tell: Tell = nobody) -> None:
    """Make a table a partitioned one, whose first partition is the old table. `swap`: the SQL of the last step.

    An interrupted run leaves a CHECK behind, which the next run uses. Raises BrewError where the table is in use for
    longer than schema_wait_s, or where an object depends on it that the partitioned table would not have.
    """
    for _ in range(_TRIES):
        try:
            for step in _STEPS:
                _take(connection, table, swap.replace("'swap'", step), swap.replace("'swap'", "'lock'"), tell)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise _refused(error) from None
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            refused = _refused(error)  # the table has grown past the CHECK's bound, or holds an id out of bounds
        else:
            return
    raise refused


def statements(swap: LiteralString) -> list[list[LiteralString]]:
    """Return the statements of each step, for a plan. Each step is one transaction."""
    before = [queries["act_as_owner"], queries["lock_schema"], swap.replace("'swap'", "'lock'")]
    return [[*(before if _locks_out(step) else before[:1]), swap.replace("'swap'", step)] for step in _STEPS]


def _locks_out(step: str) -> bool:
    return "'validate'" not in step


def _refused(error: psycopg.Error) -> BrewError:
    said = error.diag.message_primary or str(error).splitlines()[0]
    return BrewError(said, hint=error.diag.message_hint or "run `brewctl db init` again")


def _take(connection: "BoundedConnection", table: str, step: LiteralString, lock: LiteralString, tell: Tell) -> None:
    """Run a step as soon as no transaction keeps the table for long, as `table_locks.change` does."""
    found: list[Holder] = []
    staying: list[Holder] = []
    told = False
    locks_out = _locks_out(step)

    def attempt() -> bool:
        nonlocal found, staying, told
        seen = {holder.transaction for holder in found}
        with bounded(connection):
            connection.execute(queries["act_as_owner"])
            if locks_out:
                connection.execute(queries["lock_schema"])
                # This lock cancels an autovacuum of the table, and none begins while it is held.
                connection.execute(lock)
                found = holders(connection, [table])
                staying = [holder for holder in found if holder.transaction in seen]
                free = not staying and (seen or not found)
            if not locks_out or free:
                connection.execute(step)
                return True
        if staying and not told:
            tell(f"waits for {staying[0]} …")
            told = True
        return False

    until_free(connection, attempt, lambda: in_use(f"table {table}", staying or found))


def partitions(connection: "Connection", table: str) -> list[LiteralString]:
    """Return the names of a table's partitions, quoted as SQL needs it; none where it is a plain table."""
    return [name for (name,) in connection.execute(queries["partitions"], {"table": table})]
