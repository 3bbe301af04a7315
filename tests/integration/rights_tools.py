"""The roles that `db grants` makes, with names of one test's own, and a user for each."""

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

from tests.conftest import Rig


@dataclass(frozen=True)
class Roles:
    """The rig, and what the names of its roles begin with."""

    rig: Rig
    prefix: str

    def name(self, role: str) -> str:
        return self.prefix + role

    def url(self, *roles: str, database_url: str = "") -> str:
        """Return the URL of a user that has these roles and no other right."""
        user = f"{self.prefix}user_{'_'.join(roles)}"
        if not self.has(user):
            make = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
            self.rig.connection.execute(make.format(sql.Identifier(user), self.prefix))
        for role in roles:
            self.rig.connection.execute(
                sql.SQL("GRANT {} TO {}").format(sql.Identifier(self.name(role)), sql.Identifier(user))
            )
        where = database_url or self.rig.settings.database_url
        return psycopg.conninfo.make_conninfo(where, user=user, password=self.prefix)

    def has(self, role: str) -> bool:
        return self.rig.connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None

    def env(self, *roles: str) -> dict[str, str]:
        return {**self.rig.env, "BREW_DATABASE_URL": self.url(*roles)}


@contextlib.contextmanager
def dropped(rig: Rig) -> Iterator[str]:
    """Yield a prefix; what was made with it is dropped in the end, from the rig's database and the server."""
    prefix = f"brewt_{uuid.uuid4().hex[:8]}_"
    try:
        yield prefix
    finally:
        rig.nodes.stop()
        made = [
            name
            for (name,) in rig.connection.execute(
                "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [prefix]
            )
        ]
        for name in made:
            rig.connection.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(sql.Identifier(name)))
            rig.connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        for name in made:
            rig.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
