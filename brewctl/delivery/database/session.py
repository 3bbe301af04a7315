"""What each connection asks PostgreSQL for, whatever the server, a role, a database or the shell say.

On a direct connection all of it travels in the startup packet, and costs nothing. A pooler in transaction mode, such
as PgBouncer, refuses or drops it: there each transaction begins with it (`database.BoundedConnection`).
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from brewctl.errors import UsageError
from brewctl.limits import Limits
from brewctl.security import DatabaseSecurity
from brewctl.sql import queries

# A setting that only a session of ours has: where it is missing, the startup packet's options were dropped.
MARK = "brewctl.session"
# What a pooler says that takes no options in the startup packet: PgBouncer, then RDS Proxy.
_REFUSALS = ("unsupported startup parameter", "command-line options")
# Words of the `options` in a URL, split as the server splits them: a backslash keeps the character after it.
_WORD = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
_SETTING = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
# libpq sends these to the server, and no keyword of a connection string wins over them.
_WITHOUT_KEYWORD = ("PGDATESTYLE", "PGTZ", "PGGEQO")
# Keywords whose variables never count: they would change what a session means, or lead a host that the URL names to
# another address. Host, port, user, database and password come from the shell where the URL leaves them out.
_MEANING = frozenset({"hostaddr", "options", "client_encoding"})
# Keywords of how a server is spoken to, by their beginnings. Their variables count for servers on other machines.
_MANNER = (
    *("ssl", "gss", "krb", "channel_binding", "require_auth", "requirepeer"),
    *("target_session_attrs", "load_balance_hosts", "min_protocol", "max_protocol"),
)
# What libpq means by a keyword that is not given, where it does not say so itself.
_UNSAID = {
    "sslcertmode": "allow",
    "require_auth": "scram-sha-256,md5,password,gss,sspi,none",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
}
# Variables, by their beginnings, and what an error says that they can cause.
_BLAMED = {
    "PGSSL": re.compile(r"\bssl|\btls|certificate", re.IGNORECASE),
    "PGREQUIRESSL": re.compile("SSL"),
    "PGGSS": re.compile(r"gss|kerberos", re.IGNORECASE),
    "PGCHANNELBINDING": re.compile("channel binding"),
    "PGREQUIREAUTH": re.compile("authentication method"),
    "PGPASS": re.compile("password"),
    "PGUSER": re.compile("password|role "),
    "PGDATABASE": re.compile("database .* does not exist"),
    "PGTARGETSESSIONATTRS": re.compile("session is|hot standby"),
    "PGSERVICE": re.compile("definition of service|service file"),
    "PGREQUIREPEER": re.compile("peer"),
    "PGHOST": re.compile("refused|timeout|not known|could not translate|resolve host|No such file"),
    "PGPORT": re.compile("refused|timeout|No such file"),
}
# PostgreSQL's names know no case; these are written as it shows them.
_SHOWN = {"datestyle": "DateStyle", "timezone": "TimeZone"}


@dataclass
class Session:
    """What the connections of one pool, or one connection, ask for. The server ends a statement after `statement_s`.

    Raises UsageError where the URL is none: see `database.place`.
    """

    url: str = field(repr=False)  # may hold a password
    name: str
    limits: Limits
    statement_s: float
    lock_s: float = 0  # how long a statement waits for a lock; 0: no sooner ended
    by_index: bool = False  # tables are read by their indexes alone
    takes_options: bool = True  # False once a pooler has refused them
    secrets: DatabaseSecurity = field(default_factory=DatabaseSecurity)

    def bounds(self) -> dict[str, int]:
        """Return the names of the server's bounds, and how many milliseconds are asked for; 0: none."""
        return {
            "statement_timeout": int(self.statement_s * 1000),
            "lock_timeout": int(self.lock_s * 1000),
            "idle_in_transaction_session_timeout": self.limits.database_idle_transaction_s * 1000,
        }

    def settings(self) -> dict[str, str]:
        """Return the settings of the session by name. Those of the URL's own `options` win."""
        return {
            **{name: f"{bound_ms}ms" for name, bound_ms in self.bounds().items()},
            # A fetch of a few rows is planned over all that wait: compiling it takes longer than running it.
            "jit": "off",
            # An order that a statement has just waited for must be seen by the next one.
            "default_transaction_isolation": "read committed",
            # What a role or a database says instead would hide our tables, or show others of the same names.
            "search_path": '"$user", public',
            "DateStyle": "ISO, MDY",  # psycopg reads no other
            "TimeZone": "UTC",
            # A plan that was made while a table was empty is kept, and would read all of it later.
            **({"enable_seqscan": "off"} if self.by_index else {}),
            **self.given_settings(),
        }

    @property
    def idle_bound(self) -> str:
        """Say how long a transaction may be idle, as the URL does, or in seconds."""
        name = "idle_in_transaction_session_timeout"
        return self.given_settings().get(name) or f"{self.limits.database_idle_transaction_s} s"

    def arguments(self) -> dict[str, Any]:
        """Return what psycopg is to connect with, by secrets as they are now. Raises UsageError for one's file."""
        given = server(self.url, self.secrets)
        _, rest = self._given_options()
        options = [f"-c {name}={_escaped(value)}" for name, value in (self.settings() | {MARK: "on"}).items()]
        return {
            # A peer that vanished without a goodbye is noticed within about 20 s.
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "connect_timeout": self.limits.database_connect_s,
            "application_name": self.name,
            **explicit(given),
            # A server whose text has another encoding converts it, or says which character it does not have.
            "client_encoding": "UTF8",
            "options": " ".join([*options, *rest]) if self.takes_options else "",
        }

    def refused(self, error: psycopg.OperationalError) -> bool:
        """Say, and note, whether a pooler has refused the options: without them it takes the connection."""
        refused = any(refusal in str(error) for refusal in _REFUSALS)
        if refused:
            self.takes_options = False  # for the pool's other connections too
        return refused

    def transaction_settings(self, statement_s: float) -> tuple[str, dict[str, list[str]]]:
        """Return the statement that gives one transaction these settings, which end with it."""
        settings = self.settings()
        if statement_s < self.statement_s:
            settings["statement_timeout"] = f"{int(statement_s * 1000)}ms"
        return queries["set_locally"], {"names": list(settings), "values": list(settings.values())}

    def given_settings(self) -> dict[str, str]:
        """Return the settings among the URL's own options."""
        return self._given_options()[0]

    def _given_options(self) -> tuple[dict[str, str], list[str]]:
        """Split the URL's own options into settings, and what else the server is to be started with."""
        settings: dict[str, str] = {}
        rest: list[str] = []
        words = iter(_WORD.findall(str(conninfo_to_dict(self.url).get("options") or "")))
        for word in words:
            text = next(words, "") if word == "-c" else word.removeprefix("-c").removeprefix("--")
            if word.startswith(("-c", "--")) and (match := _SETTING.fullmatch(re.sub(r"\\(.)", r"\1", text))):
                name = match[1].replace("-", "_")
                settings[_SHOWN.get(name.lower(), name)] = match[2]
            else:
                rest += [word, text] if word == "-c" and text else [word]
        return settings, rest


def server(url: str, secrets: DatabaseSecurity) -> dict[str, Any]:
    """Return the parts of a database's URL, with the secrets that are in files as they are now. Raises UsageError."""
    if secrets.url.file:
        url = secrets.url.read()
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message quotes the text, password and all
        raise UsageError(f"{secrets.url.variable}_FILE: {secrets.url.file} holds no PostgreSQL URL") from None
    if secrets.password and not given.get("password"):
        given["password"] = secrets.password.read()
    return given


def explicit(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a connection string with a value for whatever a PG* variable would change otherwise.

    On this machine's own addresses none decides how a server is spoken to; where the URL itself asks for TLS, PGSSL*
    say the rest. To another machine PGSSLMODE and the like stay the user's word, as in psql.
    """
    service = ("PGSERVICE",) if given.get("host") and "service" not in given else ()
    for name in (*_WITHOUT_KEYWORD, *service):
        os.environ.pop(name, None)
    local = _is_local(given)
    asks = str(given.get("sslmode") or "disable") != "disable"
    manner = tuple(each for each in _MANNER if each != "ssl" or not asks)
    neutral = {
        keyword: default
        for keyword, variable, default in _variables()
        if variable in os.environ and (keyword in _MEANING or (local and keyword.startswith(manner)))
    }
    if not given.get("host"):
        neutral.pop("hostaddr", None)  # then it says where
    return {**neutral, **given}


def blamed(error: Exception, url: str) -> list[str]:
    """Name the variables of the shell that are in force for this URL and that a refusal has to do with."""
    given = explicit(conninfo_to_dict(url))
    text = str(error)
    prefixes = tuple(prefix for prefix, pattern in _BLAMED.items() if pattern.search(text))
    return sorted(
        variable
        for keyword, variable, _ in _variables()
        if variable in os.environ
        and keyword not in given
        and (variable.startswith(prefixes) or f'option "{keyword}"' in text or f"invalid {keyword} value" in text)
    )


def _variables() -> Iterator[tuple[str, str, str]]:
    """Yield the keywords of this libpq that a variable stands for: keyword, variable, what is meant without either."""
    for option in Conninfo.get_defaults():
        if option.envvar:
            keyword = option.keyword.decode()
            if keyword == "sslmode":
                yield keyword, "PGREQUIRESSL", "prefer"  # an older word for it
            yield keyword, option.envvar.decode(), _UNSAID.get(keyword) or (option.compiled or b"").decode()


def _is_local(given: Mapping[str, Any]) -> bool:
    hosts = str(given.get("hostaddr") or given.get("host") or "").split(",")
    return all(host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _escaped(value: str) -> str:
    return re.sub(r"([\s\\])", r"\\\1", value)
