"""Each role has the rights that its statements need, and none that no statement of it needs.

PostgreSQL looks at the rights of a statement also where it only explains it. So every query is explained as each role
that has it: with all rights, and with each right taken away alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql as quoting

from brewctl import sql
from brewctl.config import DEFAULT_DOWNSTREAMS
from brewctl.delivery import registry
from brewctl.delivery.inbox import effects, waiting_events
from tests.conftest import Rig
from tests.integration.rights_tools import dropped

# Which queries of queries.sql each role has. A new one is to be named here: else the last test fails.
_EVERYBODY = {
    "bound_statements",
    "set_locally",
    "session",
    "now",
    "now_ms",
    "versions_readable",
    "held_rights",
    "lacking_rights",
    "bound_locks",
}
_REPLICA = {"versions", "keep_presence", "forget_replicas"}
_INBOX = {"parks", "await_replication", "parked_keys", "lock_keys", "park", "downstream_name", "forget_redeliveries",
          "make_partition", "ids_without_partition", "any_waiting", "note_lanes"}  # fmt: skip
_LANES = {
    "lease_waiting", "lease_again", "renew_leases", "finish_waiting", "put_back", "give_leases_back", "hold_waiting",
    "park_waiting", "keys_behind_parked", "try_lock_key", "count_waiting",
}  # fmt: skip
_DLQ = {"versions", "parked_events", "settled_letters"}
ROLES: dict[str, set[str]] = {
    "order": _REPLICA | {
        "create_orders", "orders_by_ids_or_keys", "order_by_id", "lock_order", "cancel_order", "add_event",
        "make_partition",
    },
    "publisher": _REPLICA | {
        "fetch_unpublished", "any_ready", "mark_published", "set_aside", "take_lead", "lead_of_others", "give_up_lead",
        "make_partition_ahead",
    },
    "inventory": _REPLICA | _INBOX,
    "notifications": _REPLICA | _INBOX,
    "laned": _REPLICA | _INBOX | _LANES,
    "operator": _DLQ | {
        "retry_rows", "waiting_rows", "missing_rows", "done_rows", "republish_rows", "count_as_processed",
        "settle_parked", "lock_settlements", "settle_letters", "lock_keys",
        "make_partition", "ids_without_partition", "noted_lanes",
    },
    "reader": _DLQ | {
        "waiting_rows", "nodes", "orders_between", "traced_order", "traced_events", "traced_parked", "traced_dedup",
        "traced_waiting",
        "counts", "flow", "count_parked", "pulse", "inserted", "totals", "inventory_distribution",
        "published_by_node", "count_parked_of_others", "processed_times",
        "unfinished_orders", "missing_orders", "contradicted_calls", "orders_of_keys", "cancelled_orders",
        "wrongly_parked", "slowest_order", "missing_rows", "done_rows",
    },
}  # fmt: skip
# The owner's, who may do everything with its tables; and those that an effect of a downstream is made of.
_OWNERS = {
    "register_downstream", "reset", "schema_state", "fix_search_path", "lock_schema", "table_holders", "builders",
    "statement_bound", "rebound_session", "act_as_owner", "owned_by_others", "entry_rights", "partitions",
    "write_version", "begin_migrating", "end_migrating", "migrating",
}  # fmt: skip
_PARTS = {"inbox", "taken", "taken_ids", "reserve", "notify", "take_waiting"}
# A downstream of a user's, which has lanes.
_LANED = """
from brewctl import Event, OrderCreated, downstream

@downstream("laned", lanes=2)
def tell(event: Event[OrderCreated], tx): ...
"""


@pytest.fixture
def roles(rig: Rig, tmp_path: Path) -> Iterator[str]:
    """The prefix of the roles' names."""
    (tmp_path / "laned_rights.py").write_text(_LANED)
    named = ",".join([*DEFAULT_DOWNSTREAMS, "laned_rights:tell"])
    rig.env.update(BREW_APP_DIR=str(tmp_path), BREW_DOWNSTREAMS=named)
    with dropped(rig) as prefix:
        given = rig.brewctl("db", "grants", "--apply", "--exclusive", "--prefix", prefix)
        assert given.returncode == 0, given.stderr
        yield prefix


# Without a right to its schema a table is not there.
_DENIED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction)


def texts(role: str) -> list[str]:
    """What a role runs, as EXPLAIN takes it."""
    found = [sql.queries[name] for name in sorted(ROLES[role])]
    shipped = [registry.find(name) for name in DEFAULT_DOWNSTREAMS]
    for downstream in shipped:
        if role in {downstream.group, "operator"}:
            effect = effects.effect_of(downstream, node="n")
            assert isinstance(effect, effects._Statement)
            found.append(effect._text)
    if role == "laned":
        found.append(waiting_events.Intake("laned", "n", most=1)._text)
    if role == "reader":
        found += (*sql.doctor_queries.values(), *sql.exporter_queries.values())
        found += [downstream.done for downstream in shipped]
        found.append("SELECT last_value FROM outbox_id_seq")
        for name, text in sql.verify_queries.items():
            if name in {"bounds", "analyze"} or name.startswith("copy_") or "effect_ledger" in text:
                continue
            found.append(re.sub(r"(?s)^COPY \((.*)\)\s*TO STDOUT.*", r"\1", text))
    return found


def try_all(connection: psycopg.Connection, role: str) -> list[str]:
    """Explain all that a role runs, as the role; return what it was denied. Leaves a transaction open."""
    connection.execute(quoting.SQL("SET LOCAL ROLE {}").format(quoting.Identifier(role)))
    cursor = psycopg.ClientCursor(connection)
    denied = []
    for text in texts(role.rpartition("_")[2]):
        asked: dict[str, str | None] = dict.fromkeys(re.findall(r"%\((\w+)\)[sb]", text))
        if text == sql.queries["traced_dedup"]:  # of no id at all there is no partition, and nothing else is looked at
            asked = dict.fromkeys(asked, "{1}")
        what = text if text.startswith("CREATE TEMP") else f"EXPLAIN {text}"
        try:
            with connection.transaction():
                cursor.execute(re.sub(r"%\((\w+)\)b", r"%(\1)s", what).encode(), asked)
        except _DENIED as error:
            denied.append(str(error).splitlines()[0])
    if role.endswith("_order"):  # EXPLAIN does not look into a function
        try:
            with connection.transaction():
                connection.execute("SELECT outbox_add(NULL, 'new', 't', '1')")
        except _DENIED as error:
            denied.append(str(error).splitlines()[0])
    return denied


RIGHTS = """
SELECT 'TABLE', c.oid::regclass::text, a.privilege_type, NULL
  FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = %(role)s::regrole AND c.relkind <> 'S'
 UNION ALL
SELECT 'SEQUENCE', c.oid::regclass::text, a.privilege_type, NULL
  FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = %(role)s::regrole AND c.relkind = 'S'
 UNION ALL
SELECT 'TABLE', t.attrelid::regclass::text, a.privilege_type, t.attname
  FROM pg_attribute t, aclexplode(t.attacl) a WHERE a.grantee = %(role)s::regrole
 UNION ALL
SELECT 'FUNCTION', p.oid::regproc::text, a.privilege_type, NULL
  FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee = %(role)s::regrole
 UNION ALL
SELECT 'SCHEMA', n.nspname, a.privilege_type, NULL
  FROM pg_namespace n, aclexplode(n.nspacl) a WHERE a.grantee = %(role)s::regrole
 UNION ALL
SELECT 'DATABASE', d.datname, a.privilege_type, NULL
  FROM pg_database d, aclexplode(d.datacl) a WHERE a.grantee = %(role)s::regrole AND a.privilege_type <> 'CONNECT'
"""


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_has_every_right_that_it_needs_and_needs_every_right_that_it_has(
    rig: Rig, roles: str, role: str
) -> None:
    name = roles + role
    with psycopg.connect(rig.settings.database_url) as connection:
        rights = connection.execute(RIGHTS.encode(), {"role": name}).fetchall()
        assert try_all(connection, name) == []
        connection.rollback()
        needless = []
        for kind, thing, right, column in rights:
            connection.execute(_revoke(name, kind, thing, right, column))
            if not try_all(connection, name):
                needless.append(f"{right} {thing}{f' ({column})' if column else ''}")
            connection.rollback()
    assert len(rights) > 10
    assert needless == []


def _revoke(role: str, kind: str, thing: str, right: str, column: str | None) -> quoting.Composed:
    what = (
        quoting.SQL("{} ({})").format(quoting.SQL(right), quoting.Identifier(column)) if column else quoting.SQL(right)
    )
    return quoting.SQL("REVOKE {} ON {} {} FROM {}").format(
        what, quoting.SQL(kind), quoting.Identifier(thing), quoting.Identifier(role)
    )


def test_every_query_is_some_role_s() -> None:
    known = set().union(_EVERYBODY, *ROLES.values(), _OWNERS, _PARTS)
    assert set(sql.queries) - known == set()
