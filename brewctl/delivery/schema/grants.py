"""The SQL that makes roles of PostgreSQL with only the rights that each part of brewctl needs, to print or to run.

    owner        makes and changes the tables: `db init`, `db grants`, `db retention`
    order        order-service; publisher: sends the outbox; <group>: a downstream
    reader       read-only commands: counts, trace, verify, doctor, top, metrics; it writes only temporary tables
    operator     repairs: outbox retry, republish, dlq redrive, drop

A downstream's own tables are those that its `schema` creates. In a downstream's own database there are only the roles
owner, reader, operator and the downstream's.
"""

import re
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql as quoting

from brewctl import sql
from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.database import BoundedConnection, table_locks
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.schema import homes, own_tables, parts, registration, setup
from brewctl.delivery.schema.homes import Home
from brewctl.errors import BrewError, UsageError
from brewctl.sql import queries

PREFIX = "brew_"
_PREFIX = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,29}")
_ROLES = ("owner", "order", "publisher", "reader", "operator")
_NAME_BYTES = 63  # PostgreSQL cuts longer names off
_READ_BY_NO_COMMAND = frozenset({"aggregates", "publishing", "downstreams"})
_READ_BY_EVERYBODY = frozenset({parts.VERSIONS})


def check_prefix(prefix: str) -> None:
    """Raise UsageError where a role's name can't begin with this."""
    if not _PREFIX.fullmatch(prefix):
        hint = "use up to 30 lower-case letters, digits and '_', not 'pg_'"
        raise UsageError(f"--prefix {prefix[:40]!r} can't begin a role's name", hint=hint)


class Script:
    """The SQL for one database."""

    def __init__(self, home: Home, apart: Sequence[Downstream], *, prefix: str, exclusive: bool) -> None:
        """`apart`: downstreams with a database of their own, which need a few rights in the story's too.

        `exclusive`: revoke from PUBLIC the rights to connect, to use the schema and to call its functions. Raises
        UsageError where a role's name is too long or taken.
        """
        check_prefix(prefix)
        self._prefix = prefix
        self._exclusive = exclusive
        self._story = not home.apart
        self._here = home.downstreams
        self._apart = apart
        self._owner, self._reader, self._operator = (self._role(each) for each in ("owner", "reader", "operator"))
        self._own = [
            own_tables.made_by(registration.schema_text(each), self._group(each))
            for each, name in zip(home.downstreams, home.names, strict=True)
            if not registry.is_own(name)
        ]
        self._shipped = {
            each.group for each, name in zip(home.downstreams, home.names, strict=True) if registry.is_own(name)
        }
        needed = home.tables
        self._tables = [name for name in parts.TABLES if needed is None or name in needed]

    def _role(self, name: str) -> str:
        role = self._prefix + name
        if len(role.encode()) > _NAME_BYTES:
            raise UsageError(f"role {role[:40]}… is longer than {_NAME_BYTES} characters", hint="take a shorter group")
        return quoting.Identifier(role).as_string(None) if not re.fullmatch(r"[a-z_][a-z0-9_]*", role) else role

    def _group(self, downstream: Downstream) -> str:
        if downstream.group in _ROLES:
            message = f"downstream {downstream.group}: {self._prefix}{downstream.group} is a role of brewctl's own"
            raise UsageError(message, hint="give it another group")
        return self._role(downstream.group)

    @property
    def roles(self) -> list[str]:
        """The roles that have a right in this database, the owner first."""
        services = [self._role("order"), self._role("publisher")] if self._story else []
        groups = [self._group(each) for each in (*self._here, *self._apart)]
        return [self._owner, *services, *groups, self._reader, self._operator]

    @property
    def objects(self) -> list[str]:
        """The tables, views and sequences that belong to the owner."""
        return [*self._tables, *(name for own in self._own for name in (*own.tables, *own.sequences))]

    @property
    def _functions(self) -> list[str]:
        """The functions that belong to the owner; make_partition runs with the owner's rights."""
        return ["outbox_add", *parts.PARTITION_FUNCTIONS] if self._story else [*parts.PARTITION_FUNCTIONS]

    @property
    def text(self) -> str:
        """The whole script, without BEGIN and COMMIT."""
        return "\n\n".join("\n".join(part) for part in self._parts()) + "\n"

    def _parts(self) -> Iterator[list[str]]:
        yield [f"-- The roles. None logs in: give them to users that do, as in GRANT {self.roles[1]} TO my_user;",
               *self._block(line for role in self.roles for line in (
                   f"IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {own_tables.literal(role)}) THEN",
                   f"    CREATE ROLE {role} NOLOGIN;",
                   "END IF;"))]  # fmt: skip
        yield ["-- The database and its schema.", *self._block(self._entry())]
        yield [
            "-- The owner of the tables. A table's previous owner becomes a member of it, and so keeps its rights.",
            *self._ownership(),
        ]
        users = ", ".join(self.roles[1:])
        yield [
            "-- The other roles have only the rights that follow.",
            f"REVOKE ALL ON {', '.join(self.objects)} FROM PUBLIC, {users};",
            *_given(users, "everybody"),
        ]
        yield from self._of_services()
        yield self._of_readers()
        yield ["-- The operator.", *self._operators()]

    def _of_services(self) -> Iterator[list[str]]:
        if self._story:
            yield ["-- The order-service; one that publishes itself needs the publisher's rights too.",
                   *_given(self._role("order"), "replica", "order"),
                   f"GRANT EXECUTE ON FUNCTION outbox_add TO {self._role('order')};"]  # fmt: skip
            yield ["-- The publisher.", *_given(self._role("publisher"), "replica", "publisher")]
        for downstream in self._here:
            sections = ("replica", "registered", "inbox") if self._story else ("registered", "inbox")
            lanes = ("lanes",) if downstream.lanes else ()
            shipped = (downstream.group,) if downstream.group in self._shipped else ()
            yield [f"-- Downstream {downstream.group}.", *_given(self._group(downstream), *sections, *lanes, *shipped)]
        for downstream in self._apart:
            yield [f"-- Downstream {downstream.group}, whose tables are in another database.",
                   *_given(self._group(downstream), "replica", "registered")]  # fmt: skip
        for own in self._own:
            yield ["-- A downstream's own tables, for its handler and for the operator, who redrives events.",
                   *own_tables.given(own, self._operator)]  # fmt: skip

    def _of_readers(self) -> list[str]:
        lines = [f"-- The reader. {self._reader} also sees other users' sessions, and makes temporary tables."]
        read = ", ".join(name for name in self.objects if name not in _READ_BY_NO_COMMAND | _READ_BY_EVERYBODY)
        lines.append(f"GRANT SELECT ON {read} TO {self._reader};")
        if self._story:
            lines.append(f"GRANT SELECT ON SEQUENCE outbox_id_seq TO {self._reader};")
        return lines + self._block([
            f"IF NOT pg_has_role({own_tables.literal(self._reader)}, 'pg_read_all_stats', 'MEMBER') THEN",
            f"    GRANT pg_read_all_stats TO {self._reader};",
            "END IF;",
            "EXCEPTION WHEN insufficient_privilege THEN",
            f"    RAISE NOTICE 'a superuser must GRANT pg_read_all_stats TO {self._reader}';",
        ])  # fmt: skip

    def _operators(self) -> Iterator[str]:
        if self._story:
            yield from _given(self._operator, "operator")
        yield from _given(self._operator, "redriver", *sorted(self._shipped))

    def _entry(self) -> Iterator[str]:
        everybody = ", ".join(self.roles)
        yield f"EXECUTE format('GRANT CONNECT ON DATABASE %I TO {everybody}', current_database());"
        yield f"EXECUTE format('GRANT USAGE ON SCHEMA %I TO {everybody}', current_schema());"
        yield f"EXECUTE format('GRANT CREATE ON SCHEMA %I TO {self._owner}', current_schema());"
        yield f"EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO {self._reader}', current_database());"
        if self._exclusive:
            yield "EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());"
            yield "EXECUTE format('REVOKE ALL ON SCHEMA %I FROM PUBLIC', current_schema());"
            if self._story:
                yield "REVOKE EXECUTE ON FUNCTION outbox_add FROM PUBLIC;"
            yield "REVOKE EXECUTE ON FUNCTION make_partition FROM PUBLIC;"

    def _ownership(self) -> list[str]:
        owner = own_tables.literal(self._owner)
        asked = ", ".join(f"{own_tables.literal(name, as_is=True)}::regclass" for name in self.objects)
        ours = f"pg_has_role({{}}, {owner}, 'USAGE')"
        lines = [
            f"IF NOT {ours.format('current_user')} THEN",
            f"    GRANT {self._owner} TO CURRENT_USER;",
            "END IF;",
            "FOR part IN SELECT oid::regclass AS name, relowner AS owner FROM pg_class",
            f"             WHERE (oid IN ({asked})",
            f"                    OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN ({asked})))",  # noqa: S608
            f"               AND relowner <> {owner}::regrole",
            # The sequence of a column gets the new owner with its table.
            "               AND NOT (relkind = 'S' AND EXISTS (SELECT FROM pg_depend d",
            "                         WHERE d.objid = pg_class.oid AND d.deptype IN ('a', 'i')))",
            "LOOP",
            f"    IF NOT {ours.format('part.owner')} THEN",
            f"        EXECUTE format('GRANT {self._owner} TO %s', part.owner::regrole);",
            "    END IF;",
            f"    EXECUTE format('ALTER TABLE %s OWNER TO {self._owner}', part.name);",
            "END LOOP;",
        ]
        for function in self._functions:
            lines += [
                f"IF (SELECT proowner FROM pg_proc WHERE oid = '{function}'::regproc) <> {owner}::regrole THEN",  # noqa: S608
                f"    ALTER FUNCTION {function} OWNER TO {self._owner};",
                "END IF;",
            ]
        return self._block(lines, declare="part record;")

    @staticmethod
    def _block(lines: Iterator[str] | Sequence[str], *, declare: str = "") -> list[str]:
        unindented = ("EXCEPTION",)
        body = [line if line.startswith(unindented) else f"    {line}" for line in lines]
        return ["DO $$", *([f"DECLARE {declare}"] if declare else []), "BEGIN", *body, "END", "$$;"]


def _given(role: str, *sections: str) -> list[str]:
    return [sql.grants[section].replace(":role", role) for section in sections]


def scripts(settings: Settings, names: Sequence[str], *, prefix: str, exclusive: bool) -> list[tuple[Home, Script]]:
    """Return the script for each database: the story's first, then those of downstreams that have one of their own.

    `names`: only the story's and the databases of these downstreams. Raises UsageError.
    """
    every = homes.of(settings)
    wanted = set(map(registry.full_name, names))
    apart = [downstream for home in every if home.apart for downstream in home.downstreams]
    return [
        (home, Script(home, () if home.apart else apart, prefix=prefix, exclusive=exclusive))
        for home in every
        if not names or not home.apart or wanted & set(home.names)
    ]


def apply(home: Home, script: Script) -> None:
    """Make the roles and their rights in one transaction.

    Raises BrewError where a table is missing, or the user lacks the right to do this.
    """
    where = database.place(home.settings.database_url)
    with database.connect(home.settings) as connection:
        setup.require(connection, reading=True, tables=home.tables, init_command=home.settings.init_command)
        try:
            _run(connection, script)
        except psycopg.errors.UndefinedTable as error:
            said = (error.diag.message_primary or str(error).splitlines()[0]).replace('"', "")
            own = [name for name in home.names if not registry.is_own(name)]
            raise BrewError(f"postgres {where}: {said}", hint=f"run `brewctl db init {' '.join(own)}`") from error
        except psycopg.errors.InsufficientPrivilege as error:
            said = error.diag.message_primary or str(error).splitlines()[0]
            hint = "let a superuser run it, or what it prints without --apply"
            message = f"postgres {where}: user {connection.info.user} may not make these roles and rights: {said}"
            raise BrewError(message, hint=hint) from error
        if lacking := [str(what) for (what,) in connection.execute(queries["entry_rights"], _asked(script))]:
            # PostgreSQL gives only a warning where a user may not grant a right.
            message = f"postgres {where}: user {connection.info.user} may not give {', '.join(lacking)}"
            raise BrewError(message, hint="let the owner of the database run it, or a superuser")


def _asked(script: Script) -> dict[str, object]:
    names = [own_tables.literal(role)[1:-1] for role in script.roles]
    return {"owner": names[0], "roles": names}


def _run(connection: BoundedConnection, script: Script) -> None:
    owner = _asked(script)["owner"]
    moved = connection.execute(queries["owned_by_others"], {"owner": owner, "tables": script.objects}).fetchone()
    if moved and moved[0]:  # ALTER TABLE … OWNER locks the table
        table_locks.change(connection, parts.TABLES, script.text)
        return
    with table_locks.bounded(connection):
        connection.execute(queries["lock_schema"])
        psycopg.Cursor(connection).execute(script.text.encode())
