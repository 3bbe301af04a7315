"""Hints for a server that can't be reached, by the reason and by whether the user configured the server's address."""

from brewctl.config import DEFAULT_BROKERS, DEFAULT_DATABASE_URL, Settings

_FLAG = " or --database-url"
# By the reasons that `database.explained` gives.
_OF_POSTGRES = {
    "refused the password": "correct the password in {variable}{flag}, or in PGPASSWORD or ~/.pgpass",
    "wants a password": "put the password into {variable}, PGPASSWORD or ~/.pgpass",
    "has no such database or role": "create it there in psql, or correct {variable}{flag}",
    "does not let this user connect": "`brewctl db grants` prints what each role needs, and how a user gets it",
    "is an unknown host": "correct the host in {variable}{flag}",
    "has no connection left": "end some sessions, or raise max_connections and restart postgres",
    "takes no writes": "name the primary, or all servers: postgresql://…@H1:P1,H2:P2/NAME?target_session_attrs=read-write",
    "is still starting": "run it again when postgres has started: its log says what it waits for",
    "is shutting down": "start postgres again",
}
# Reasons whose hint is the same whether or not the user configured the address.
_OF_THE_SERVER = {"does not let this user connect", "has no connection left", "is still starting", "takes no writes"}


def for_postgres(settings: Settings, reason: str) -> str:
    """Return the hint for the database of these settings, which can't be used for this reason."""
    own = settings.database_variable != Settings.database_variable  # a downstream's database, which no flag names
    named = own or "database_url" in settings.configured
    variable, flag = settings.database_variable, "" if own else _FLAG
    if reason in _OF_THE_SERVER or (named and reason in _OF_POSTGRES):
        return _OF_POSTGRES[reason].format(variable=variable, flag=flag)
    if named:
        return f"start it (`brewctl up` where it is the sandbox's), or correct {variable}{flag}"
    if settings.database_url == DEFAULT_DATABASE_URL:
        return "run `brewctl up`, or set BREW_DATABASE_URL"
    return "run `brewctl up`"  # the sandbox's database


def for_kafka(settings: Settings) -> str:
    """Return the hint for brokers of these settings that do not answer."""
    if "brokers" in settings.configured:
        return "start them (`brewctl up` where they are the sandbox's), or correct BREW_KAFKA_BROKERS or --brokers"
    return "run `brewctl up`, or set BREW_KAFKA_BROKERS" if settings.brokers == DEFAULT_BROKERS else "run `brewctl up`"
