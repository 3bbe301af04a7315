"""The settings of each session. They win over those of the server, of a role or a database, and of PG* variables.

On a direct connection they travel in the startup packet, without a round trip. A pooler in transaction mode, such as
PgBouncer, refuses or drops them: there each transaction begins with them (`database.BoundedConnection`).
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

# A setting that only our sessions have: where it is missing, a pooler has dropped the startup packet's options.
MARK = "brewctl.session"
# Errors of poolers that refuse options in the startup packet: PgBouncer, then RDS Proxy.
_REFUSALS = ("unsupported startup parameter", "command-line options")
# Words of the `options` in a URL, split as the server splits them: a backslash keeps the character after it.
_WORD = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
_SETTING = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
# libpq sends these variables to the server, and no keyword of a connection string overrides them.
_WITHOUT_KEYWORD = ("PGDATESTYLE", "PGTZ", "PGGEQO")
# Keywords whose variables are always ignored: they would change the session's settings, or connect to another address
# than the URL's host. Host, port, user, database and password come from variables where the URL leaves them out.
_MEANING = frozenset({"hostaddr", "options", "client_encoding"})
# Prefixes of keywords about TLS, authentication and failover. Their variables are ignored for servers on this machine.
_MANNER = (
    *("ssl", "gss", "krb", "channel_binding", "require_auth", "requirepeer"),
    *("target_session_attrs", "load_balance_hosts", "min_protocol", "max_protocol"),
)
# libpq's defaults for keywords, where libpq does not report them.
_UNSAID = {
    "sslcertmode": "allow",
    "require_auth": "scram-sha-256,md5,password,gss,sspi,none",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
}
# Prefixes of variables, and the errors that they can cause.
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
# Names of settings are case-insensitive; these are written as PostgreSQL shows them.
_SHOWN = {"datestyle": "DateStyle", "timezone": "TimeZone"}


@dataclass
class Session:
    """The settings of one connection, or of a pool's connections. `url` must be valid: see `database.place`."""

    url: str = field(repr=False)  # may hold a password
    name: str
    limits: Limits
    statement_s: float
    lock_s: float = 0  # how long a statement waits for a lock; 0: as long as statement_s
    by_index: bool = False  # no sequential scans
    takes_options: bool = True  # False once a pooler has refused them
    secrets: DatabaseSecurity = field(default_factory=DatabaseSecurity)

    def bounds(self) -> dict[str, int]:
        """Return the server's timeouts in milliseconds, by the names of their settings; 0: none."""
        return {
            "statement_timeout": int(self.statement_s * 1000),
            "lock_timeout": int(self.lock_s * 1000),
            "idle_in_transaction_session_timeout": self.limits.database_idle_transaction_s * 1000,
        }

    def settings(self) -> dict[str, str]:
        """Return the session's settings by name. Those of the URL's `options` win."""
        return {
            **{name: f"{bound_ms}ms" for name, bound_ms in self.bounds().items()},
            # A fetch of a few rows is costed over all waiting rows, so PostgreSQL would compile it, which takes longer
            # than to run it.
            "jit": "off",
            # A statement must see the order whose commit the statement before has waited for.
            "default_transaction_isolation": "read committed",
            # The setting of a role or a database could hide our tables, or show others of the same names.
            "search_path": '"$user", public',
            "DateStyle": "ISO, MDY",  # psycopg reads no other
            "TimeZone": "UTC",
            # A plan made while a table was empty is kept, and would scan the whole table once it has grown.
            **({"enable_seqscan": "off"} if self.by_index else {}),
            **self.given_settings(),
        }

    @property
    def idle_bound(self) -> str:
        """How long a transaction may be idle, for a message: as the URL's options say it, or in seconds."""
        name = "idle_in_transaction_session_timeout"
        return self.given_settings().get(name) or f"{self.limits.database_idle_transaction_s} s"

    def arguments(self) -> dict[str, Any]:
        """Return psycopg's arguments for a connection, with secrets read now.

        Raises UsageError where the file of a secret can't be read.
        """
        given = server(self.url, self.secrets)
        _, rest = self._given_options()
        options = [f"-c {name}={_escaped(value)}" for name, value in (self.settings() | {MARK: "on"}).items()]
        return {
            # A server that vanished without closing the connection is noticed within about 20 s.
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "connect_timeout": self.limits.database_connect_s,
            "application_name": self.name,
            **explicit(given),
            # A server with another encoding converts texts, or names the character that it does not have.
            "client_encoding": "UTF8",
            "options": " ".join([*options, *rest]) if self.takes_options else "",
        }

    def refused(self, error: psycopg.OperationalError) -> bool:
        """Return whether a pooler has refused the options; if so, later connections are made without them."""
        refused = any(refusal in str(error) for refusal in _REFUSALS)
        if refused:
            self.takes_options = False  # for the pool's other connections too
        return refused

    def transaction_settings(self, statement_s: float) -> tuple[str, dict[str, list[str]]]:
        """Return a statement, and its parameters, that sets these settings for one transaction."""
        settings = self.settings()
        if statement_s < self.statement_s:
            settings["statement_timeout"] = f"{int(statement_s * 1000)}ms"
        return queries["set_locally"], {"names": list(settings), "values": list(settings.values())}

    def given_settings(self) -> dict[str, str]:
        """Return the settings in the URL's `options`."""
        return self._given_options()[0]

    def _given_options(self) -> tuple[dict[str, str], list[str]]:
        """Split the URL's `options` into settings and other options for the server."""
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
    """Return the parts of a database's URL, with secrets read from their files now. Raises UsageError."""
    if secrets.url.file:
        url = secrets.url.read()
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message quotes the URL with its password
        raise UsageError(f"{secrets.url.variable}_FILE: {secrets.url.file} holds no PostgreSQL URL") from None
    if secrets.password and not given.get("password"):
        given["password"] = secrets.password.read()
    return given


def explicit(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a connection string, with defaults for each keyword whose PG* variable is to be ignored.

    For a server on this machine PGSSL* and the like are ignored; where the URL asks for TLS, PGSSL* give the rest. For
    a server on another machine they count, as in psql.
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
        neutral.pop("hostaddr", None)  # without a host in the URL, PGHOSTADDR is the address
    return {**neutral, **given}


def blamed(error: Exception, url: str) -> list[str]:
    """Name the PG* variables that count for this URL and may have caused this error."""
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
    """Yield libpq's keywords that have a variable: keyword, variable, default."""
    for option in Conninfo.get_defaults():
        if option.envvar:
            keyword = option.keyword.decode()
            if keyword == "sslmode":
                yield keyword, "PGREQUIRESSL", "prefer"  # the older name
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
