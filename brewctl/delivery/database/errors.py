"""PostgreSQL's errors in the user's words: which server, what happened, what to run."""

import contextlib
import getpass
import os
from collections.abc import Iterator

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import PoolTimeout

from brewctl.config import Settings
from brewctl.delivery import advice
from brewctl.delivery.database import rights
from brewctl.delivery.database.address import EXAMPLE, place, session_of
from brewctl.delivery.database.bounded import BoundedConnection
from brewctl.delivery.database.session import blamed
from brewctl.errors import BrewError, NotYetError, UnreachableError, UsageError

_ANOTHER_MODE = "set `pool_mode = transaction` there, or name postgres itself in BREW_DATABASE_URL"
# The server can't be used now, and perhaps later. Every other error is about the statement.
UNAVAILABLE = (
    psycopg.OperationalError,  # it is away, refuses connections, or has no connection left
    psycopg.InterfaceError,  # the connection was lost
    psycopg.errors.IdleInTransactionSessionTimeout,  # this process was paused inside a transaction
    psycopg.errors.ReadOnlySqlTransaction,  # the server became a standby
    PoolTimeout,
)
NO_WRITES = "takes no writes"  # a standby, or read-only


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn psycopg's errors of the block into errors that say which server, what happened and what to run."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        message = str(error).splitlines()[0].replace('"', "")
        raise NotYetError(
            f"postgres {place(settings.database_url)}: {message}", hint=f"run `{settings.init_command}`"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        hint = "run it again when they are free: `brewctl doctor` names a session that holds a lock for long"
        raise BrewError(f"postgres {place(settings.database_url)}: the tables are in use", hint=hint) from error
    except psycopg.errors.QueryCanceled as error:
        said = error.diag.message_primary or "a statement was cancelled"
        hint = "run it again: `brewctl doctor` names a session that holds a lock for long"
        raise BrewError(f"postgres {place(settings.database_url)}: {said}", hint=hint) from error
    except UNAVAILABLE as error:
        if "statement pooling mode" in str(error):
            message = f"the pooler at {place(settings.database_url)} pools statements, and orders need transactions"
            raise BrewError(message, hint=_ANOTHER_MODE) from error
        variables = blamed(error, settings.database_url)
        if not variables and "invalid" in str(error) and "value" in str(error):  # of the URL, such as sslmode
            raise UsageError(f"BREW_DATABASE_URL: {str(error).splitlines()[0]}", hint=EXAMPLE) from error
        from brewctl.delivery.database import tls  # noqa: PLC0415 - few need it

        named = " and ".join(variables) or settings.database_variable
        if of_file := tls.of_file(error, named):
            raise of_file from error
        refusal = tls.refusal(error, settings, settings.database_variable)
        reason, hint = refusal or (said := _reason(error), advice.for_postgres(settings, said))
        if variables:
            hint = f"unset {' and '.join(variables)}, or say in BREW_DATABASE_URL which value this server needs"
        raise UnreachableError(f"postgres {place(settings.database_url)} {reason}", hint=hint) from error
    except psycopg.Error as error:
        raise _refused(settings, error) from error


def _refused(settings: Settings, error: psycopg.Error) -> BrewError:
    """Return the error of a statement that a reachable server refused."""
    where = place(settings.database_url)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        user = str(conninfo_to_dict(settings.database_url).get("user") or os.environ.get("PGUSER") or getpass.getuser())
        return rights.refused(where, user, error, _held(settings, error))
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BrewError(f"postgres {where}: {reason}")


def _held(settings: Settings, error: psycopg.Error) -> list[str] | None:
    """Return which rights our user has to the table of a denied statement; None where that is not known."""
    if not (table := rights.table_of(error)):
        return None
    try:
        with BoundedConnection.connect(session=session_of(settings.impatient, "brewctl")) as connection:
            return rights.held(connection, table)
    except psycopg.Error:
        return None


def _reason(error: Exception) -> str:
    text = str(error).lower()
    for mark, reason in (
        # These come first: of several hosts one may refuse connections and the other be a standby.
        ("session is read-only", NO_WRITES),
        ("server is in hot standby mode", NO_WRITES),
        ("in a read-only transaction", NO_WRITES),
        ("refused", "refused the connection"),
        ("password authentication failed", "refused the password"),
        ("no password supplied", "wants a password"),
        ("does not exist", "has no such database or role"),
        ("permission denied for database", "does not let this user connect"),
        ("timeout", "did not answer in time"),
        ("too many clients", "has no connection left"),
        ("connection slots", "has no connection left"),
        ("starting up", "is still starting"),
        ("shutting down", "is shutting down"),
        ("name or service not known", "is an unknown host"),
        ("could not translate host name", "is an unknown host"),
        ("failed to resolve host", "is an unknown host"),
        ("server login", "can't be reached by the pooler in front of it"),
    ):
        if mark in text:
            return reason
    lines = str(error).strip().splitlines()
    return f"failed ({lines[0]})" if lines else f"failed ({type(error).__name__})"
