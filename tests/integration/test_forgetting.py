"""What is forgotten by its age: idempotency keys, settled events and letters."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from brewctl.delivery.orders import acceptance, store
from brewctl.delivery.retention import expiry
from brewctl.delivery.retention.expiry import Forgotten, forget
from brewctl.proto.orders_pb2 import CreateRequest
from brewctl.sql import retention_queries
from tests.conftest import Rig
from tests.integration.chain_tools import Chain, open_chain
from tests.integration.retention_tools import small_partitions

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        small_partitions(chain.rig.connection)
        yield chain


def order(rig: Rig, key: str, *, days: float = 0) -> str:
    """Create an order with a key, so many days ago."""
    request = CreateRequest(customer_id="c1", amount_cents=1, currency="EUR", idempotency_key=key)
    new = acceptance.accept(request, tenant_id=None, traceparent=None)
    made = store.create(rig.connection, new, topic=rig.settings.topic).order_id
    rig.connection.execute("UPDATE orders SET created_at = now() - %s WHERE id = %s", (days * DAY, made))
    return made


def forgotten(rig: Rig, **spans: Any) -> Forgotten:
    return forget(rig.settings, rig.connection, **{"keys_for": None, "settled_for": None} | spans)


def keys(rig: Rig) -> set[str]:
    found = rig.connection.execute("SELECT idempotency_key FROM orders WHERE idempotency_key IS NOT NULL")
    return {key for (key,) in found}


def test_keys_of_old_orders_are_forgotten_and_make_a_new_order(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_BATCH", 2)
    rig = chain.rig
    first = order(rig, "old-0", days=8)
    for number in range(1, 5):
        order(rig, f"old-{number}", days=8)
    young = order(rig, "young", days=6)
    assert forgotten(rig).keys == 0  # never
    assert order(rig, "old-0") == first
    rig.connection.execute("UPDATE orders SET created_at = now() - interval '8 days' WHERE id = %s", (first,))

    batches: list[int] = []
    spans = {"keys_for": 7 * DAY, "settled_for": None}
    done = forget(rig.settings, rig.connection, **spans, between=lambda: batches.append(len(keys(rig))))
    assert done.keys == 5
    assert batches == [4, 2, 1]  # each batch is committed before the next
    assert keys(rig) == {"young"}
    assert order(rig, "old-0") != first
    assert order(rig, "young") == young


def test_the_key_of_an_order_that_somebody_holds_is_forgotten_by_a_later_run(chain: Chain) -> None:
    rig = chain.rig
    held = order(rig, "held", days=9)
    order(rig, "free", days=8)
    with psycopg.connect(rig.settings.database_url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (held,))
        assert forgotten(rig, keys_for=7 * DAY).keys == 1
        (until,) = rig.connection.execute("SELECT keys_forgotten_until FROM retention").fetchone() or (None,)
        assert until < datetime.now(UTC) - 8.5 * DAY  # the place reached is that of the one that is left
        holder.rollback()
    assert forgotten(rig, keys_for=7 * DAY).keys == 1
    assert not {"held", "free"} & keys(rig)


def test_the_search_for_old_keys_reads_no_table_from_one_end_to_the_other(chain: Chain) -> None:
    asked = {"since": None, "before": datetime.now(UTC), "limit": 10}
    with chain.rig.connection.transaction():
        chain.execute("SET LOCAL enable_seqscan = off")
        rows = chain.rig.connection.execute("EXPLAIN " + retention_queries["forget_keys"], asked).fetchall()
    text = "\n".join(line for (line,) in rows)
    assert "orders_with_key" in text
    assert "Seq Scan" not in text


def test_what_was_settled_long_ago_is_forgotten(chain: Chain) -> None:
    rig = chain.rig
    columns = 'consumer, key, event_type, topic, partition, "offset", written_ms, value, headers, reason, attempts'
    parked = (
        f"INSERT INTO parked_events ({columns}, outbox_id, outcome, settled_at)"
        " VALUES ('inventory', 'k', 't', 't', 0, 0, 0, 'x', '[]', 'r', 1, %s, %s, now() - %s)"
    ).encode()
    for number, (outcome, days) in enumerate([("redriven", 31), ("dropped", 40), ("redriven", 29), (None, 99)]):
        rig.connection.execute(parked, (number, outcome, days * DAY))
    row = chain.order()
    letters = [chain.bury(row, 0) for _ in range(3)]
    for letter in letters:
        chain.settle(letter, "dropped")
    rig.connection.execute("UPDATE dead_letters_settled SET settled_at = now() - interval '31 days'")
    done = forgotten(rig, settled_for=30 * DAY)
    assert (done.parked, done.letters) == (1, 0)  # the letters are still in their topic: they would be open again
    rig.connection.execute("UPDATE retention SET dropped_below = 10")  # with its row, why it has no effect goes too
    assert forgotten(rig, settled_for=30 * DAY).parked == 1
    rig.connection.execute("UPDATE retention SET dropped_below = 0")
    assert rig.connection.execute("SELECT outbox_id FROM parked_events ORDER BY 1").fetchall() == [(2,), (3,)]
    rig.connection.execute('UPDATE dead_letters_settled SET "offset" = -1 WHERE "offset" = %s', (letters[0],))
    assert forgotten(rig, settled_for=30 * DAY).letters == 1
    rig.connection.execute("DELETE FROM parked_events")


def test_a_command_that_is_told_never_forgets_nothing(chain: Chain) -> None:
    order(chain.rig, "very-old", days=999)
    done = chain.rig.brewctl("db", "retention", "--keys-for", "0", "--settled-for", "0")
    assert "forgot     nothing" in done.stdout, done.stderr
    assert "very-old" in keys(chain.rig)
    done = chain.rig.brewctl("db", "retention", "--keys-for", "998d")
    assert "forgot     1 idempotency keys" in done.stdout, done.stderr
