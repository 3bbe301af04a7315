"""What a publisher fetches: which rows, how many, and what that reads in PostgreSQL."""

import json

from brewctl.delivery import database
from brewctl.sql import queries
from tests.conftest import Rig
from tests.integration.outbox_tools import UNBOUNDED, add_event, create_order, mark_published, unpublished


def test_publishers_skip_each_others_rows_and_whatever_stands_behind_them(rig: Rig) -> None:
    """Two publishers stepped by hand: SKIP LOCKED alone would hand the second row of a key to the other."""
    one, two = create_order(rig), create_order(rig)
    head, other = unpublished(rig)
    second = add_event(rig, one)
    fetch, limit = queries["fetch_unpublished"], UNBOUNDED | {"limit": 1}
    with database.connect(rig.settings) as a, database.connect(rig.settings) as b:
        with a.transaction():
            assert [row[0] for row in a.execute(fetch, limit)] == [head]
            with b.transaction():
                assert [row[0] for row in b.execute(fetch, UNBOUNDED | {"limit": 10})] == [other], two
            mark_published(a, [head])
        with b.transaction():
            assert [row[0] for row in b.execute(fetch, UNBOUNDED | {"limit": 10})] == [other, second]


def test_fetch_uses_the_partial_indexes(rig: Rig) -> None:
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload, published_at)"
        " SELECT 'order-' || n, 't', '', clock_timestamp() FROM generate_series(1, 20000) n"
    )
    for _ in range(5):
        create_order(rig)
    rig.connection.execute("ANALYZE outbox")
    plan = "\n".join(
        str(line)
        for (line,) in rig.connection.execute("EXPLAIN " + queries["fetch_unpublished"], UNBOUNDED | {"limit": 200})
    )
    assert "outbox_ready" in plan
    assert "outbox_unpublished_by_aggregate" in plan
    assert "Seq Scan" not in plan


def test_however_stale_the_statistics_a_fetch_reads_no_more_than_it_takes(rig: Rig) -> None:
    """The planner believes that nothing waits. Sorting the rows, or looking heads up by id, would read them all."""
    rig.connection.execute("ANALYZE outbox")
    rig.connection.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload)"
        " SELECT 'order-' || n, 't', '' FROM generate_series(1, 50000) n"
    )
    (analyzed,) = rig.connection.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries["fetch_unpublished"], UNBOUNDED | {"limit": 100}
    ).fetchone() or ([],)
    plan = analyzed[0]["Plan"]
    assert plan["Actual Rows"] == 100
    # Three or four pages a look-up, and the rows themselves.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100 * 10, json.dumps(plan, indent=1)


def test_however_stale_the_statistics_marking_looks_its_rows_up_in_the_index(rig: Rig) -> None:
    rig.connection.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    rig.connection.execute("INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-0', 't', '')")
    rig.connection.execute("ANALYZE outbox")
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload)"
        " SELECT 'order-' || n, 't', '' FROM generate_series(1, 20000) n"
    )
    ids = list(range(10_001, 11_001))
    marks = {"node": "n", "ids": ids, "partitions": [0] * len(ids), "offsets": ids}
    lines = rig.connection.execute("EXPLAIN " + queries["mark_published"], marks).fetchall()
    plan = "\n".join(str(line)[:200] for (line,) in lines)
    assert "Index Scan using outbox_pkey" in plan, plan
    assert "Seq Scan" not in plan, plan


def test_a_batch_is_bounded_by_bytes_and_what_is_left_stays_in_order(rig: Rig) -> None:
    sizes = [400, 400, 400, 3000, 100, 100]
    for number, size in enumerate(sizes):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, 't', %s)", (f"order-{number}", bytes(size))
        )
    ids = unpublished(rig)
    bounds = UNBOUNDED | {"limit": 10, "bytes": 1000}
    with database.connect(rig.settings) as a, database.connect(rig.settings) as b:
        taken: list[list[object]] = []
        while unpublished(rig):
            with a.transaction():
                batch = [row[0] for row in a.execute(queries["fetch_unpublished"], bounds)]
                # Heads that are locked and not taken are no one else's either, until the commit.
                with b.transaction():
                    assert b.execute(queries["fetch_unpublished"], bounds).fetchall() == []
                mark_published(a, batch)
            taken.append(batch)
    assert taken == [ids[0:2], ids[2:3], ids[3:4], ids[4:6]], "one row always fits, whatever its size"
