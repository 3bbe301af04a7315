"""What a publisher fetches: which rows, how many, and what that reads in PostgreSQL."""

import json
import re

from brewctl.delivery import database
from brewctl.sql import queries
from tests.conftest import Rig
from tests.integration.outbox_tools import UNBOUNDED, add_event, create_order, fetch, mark_published, unpublished
from tests.integration.scan_tools import keep_vacuum_away


def test_publishers_skip_each_others_rows_and_whatever_stands_behind_them(rig: Rig) -> None:
    """Two publishers stepped by hand: SKIP LOCKED alone would hand the second row of a key to the other."""
    one, two = create_order(rig), create_order(rig)
    head, other = unpublished(rig)
    second = add_event(rig, one)
    with database.connect(rig.settings) as a, database.connect(rig.settings) as b:
        with a.transaction():
            assert fetch(a, limit=1) == [head]
            with b.transaction():
                assert fetch(b, limit=10) == [other], two
            mark_published(a, [head])
        with b.transaction():
            assert fetch(b, limit=10) == [other, second]


def test_fetching_marking_and_tracing_use_the_indexes(rig: Rig) -> None:
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload, published_at)"
        " SELECT 'order-' || n, 't', '', clock_timestamp() FROM generate_series(1, 20000) n"
    )
    for _ in range(5):
        create_order(rig)
    rig.connection.execute("ANALYZE outbox")
    rig.connection.execute("SET enable_seqscan = off")  # as in the pools of publishers
    ids = unpublished(rig)

    def plan(query: str, **parameters: object) -> str:
        lines = rig.connection.execute("EXPLAIN " + queries[query], parameters).fetchall()
        return "\n".join(str(line) for (line,) in lines)

    fetched = plan("fetch_unpublished", limit=200, **UNBOUNDED)
    assert "outbox_ready" in fetched
    assert re.search(r"outbox_pkey_p0 on outbox_p0 o(_\d+)?\b", fetched), (
        "heads; the index by aggregate seems to be quick while it is empty"
    )
    mark = plan("mark_published", ids=ids, partitions=[0] * len(ids), offsets=ids, node="n")
    assert "outbox_pkey" in mark
    trace = plan("traced_events", aggregate_id="order-7")
    assert "outbox_published_by_aggregate" in trace
    assert all("outbox_unpublished_by_aggregate" in each for each in (fetched, trace))
    assert all("Seq Scan" not in each for each in (fetched, mark, trace))


def test_however_stale_the_statistics_a_fetch_reads_no_more_than_it_takes(rig: Rig) -> None:
    """The planner believes that nothing waits. Sorting the rows, or looking heads up by id, would read them all."""
    rig.connection.execute("ANALYZE outbox")
    keep_vacuum_away(rig.connection)
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload)"
        " SELECT 'order-' || n, 't', '' FROM generate_series(1, 50000) n"
    )
    rig.connection.execute("SET enable_seqscan = off")
    (analyzed,) = rig.connection.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries["fetch_unpublished"], UNBOUNDED | {"limit": 100}
    ).fetchone() or ([],)
    plan = analyzed[0]["Plan"]
    assert plan["Actual Rows"] == 100
    # Three or four pages a look-up, and the rows themselves.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100 * 10, json.dumps(plan, indent=1)


def test_a_batch_is_bounded_by_bytes_and_what_is_left_stays_in_order(rig: Rig) -> None:
    sizes = [400, 400, 400, 3000, 100, 100]
    for number, size in enumerate(sizes):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, 't', %s)", (f"order-{number}", bytes(size))
        )
    ids = unpublished(rig)
    bounds = {"limit": 10, "bytes": 1000}
    with database.connect(rig.settings) as a, database.connect(rig.settings) as b:
        taken: list[list[object]] = []
        while unpublished(rig):
            with a.transaction():
                batch = fetch(a, **bounds)
                # Heads that are locked and not taken are no one else's either, until the commit.
                with b.transaction():
                    assert fetch(b, **bounds) == []
                mark_published(a, batch)
            taken.append(batch)
    assert taken == [ids[0:2], ids[2:3], ids[3:4], ids[4:6]], "one row always fits, whatever its size"
