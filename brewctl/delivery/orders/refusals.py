"""Tells errors that every retry of an order would repeat from temporary ones, by the SQLSTATE."""

import psycopg

from brewctl import log
from brewctl.delivery.schema import no_partition

# Classes and codes of SQLSTATE for failures that may be over at the next try. All others are about the written values:
# data, constraints, and codes that a trigger raises.
_PASSING = (
    "08",  # the connection
    "0A",  # a plan that has gone stale
    "25",  # read-only, idle for too long
    "26",  # a prepared statement that is gone
    "28",  # the password
    "34",
    "3D",  # the database
    "40",  # serialization, deadlock
    "42P01",  # a table that `db init` makes
    "53",  # disk, memory, connections
    "55006",
    "55P03",  # a lock
    "57",  # a timeout, a shutdown
    "58",  # the machine
    "72",
    "F0",
    "HV",  # a foreign server
    "XX",  # PostgreSQL itself
)
# Text with characters that the database's encoding lacks.
_TEXT = ("22021", "22P05")
_SHOWN_CHARACTERS = 300  # a status travels in headers, which have a bound


def never_taken(error: Exception) -> bool:
    """Whether a retry of the same order would fail in the same way. Nothing was written."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return not (error.sqlstate.startswith(_PASSING) or lacks_right(error) or no_partition.table_of(error))
    # psycopg raises these before it sends anything: the value can't be encoded.
    return isinstance(error, psycopg.DataError | UnicodeError)


def lacks_right(error: Exception) -> bool:
    """Whether our user lacks a right to a table, which a GRANT mends.

    A trigger that refuses an order, or row-level security, may raise the same SQLSTATE: the source function differs.
    """
    said = error.diag.source_function if isinstance(error, psycopg.errors.InsufficientPrivilege) else None
    return said is not None and said.startswith("aclcheck_error")


def is_text(error: Exception) -> bool:
    """Whether the error is about characters that the database can't store."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error.sqlstate in _TEXT
    return never_taken(error)


def words(error: Exception) -> str:
    """Return PostgreSQL's main message, in one line of a bounded length."""
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    line = " ".join((said or log.reason(error)).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
