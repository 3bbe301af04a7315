"""Old partitions go in step, and only when nobody needs a row of them: full cycles, and each thing that keeps one."""

import json
from collections.abc import Iterator

import pytest

from brewctl.verify import verify
from tests.integration.chain_tools import Chain, broken, open_chain
from tests.integration.retention_tools import attached, fill, left, remove_records, run, small_partitions, state


@pytest.fixture
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        small_partitions(chain.rig.connection)
        yield chain


def test_two_full_cycles(chain: Chain) -> None:
    connection, settings = chain.rig.connection, chain.rig.settings
    fill(chain, 25)
    before = json.loads(chain.rig.brewctl("db", "retention", "--dry-run", "--json").stdout)
    assert [each["may_go"] for each in before["partitions"]][:2] == [False, False]
    assert "still has records of it" in before["partitions"][0]["reasons"][0]["text"]
    remove_records(chain)
    there = attached(connection, "outbox")
    dry = chain.rig.brewctl("db", "retention", "--dry-run")
    assert dry.returncode == 0
    assert "outbox_p0: ids 0 to 9, 9 rows" in dry.stdout
    assert dry.stdout.count("may go") == 2
    assert attached(connection, "outbox") == there
    assert state(connection)["dropped_below"] == 0

    done = chain.rig.brewctl("db", "retention")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "dropped processed_events_p10"), done.stderr
    assert "dropped    outbox_p0, outbox_p10, processed_events_p0, processed_events_p10" in done.stdout
    names = ["p20", "p30", "p40", "p50", "p60"]  # 26 is next; four are ahead of its own
    assert attached(connection, "outbox") == [f"outbox_{name}" for name in names]
    assert attached(connection, "processed_events") == [f"processed_events_{name}" for name in names]
    found = verify(settings, late_s=0)
    assert broken(found) == {}
    assert found.facts.watermark == 20
    assert "outbox rows below 20 were dropped" in found.verdict

    fill(chain, 15)
    remove_records(chain)
    assert run(settings).dropped == [
        "outbox_p20", "outbox_p30", "processed_events_p20", "processed_events_p30",
    ]  # fmt: skip
    noted = state(connection)
    assert (noted["dropped_below"], noted["dropped_created"], noted["dropping"]) == (40, 39, None)
    assert (noted["held_back"], noted["refused"], noted["node_id"]) == ("", False, None)
    assert broken(verify(settings, late_s=0)) == {}
    assert len(left(connection)) == 2 * len(attached(connection, "outbox"))


def test_partitions_of_stray_ids_stay_until_the_watermark_has_passed_them(chain: Chain) -> None:
    connection = chain.rig.connection
    for row_id in (1000, 1010):
        connection.execute("SELECT make_partition('processed_events', %s)", (row_id,))
    connection.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', 1005)")
    fill(chain, 25)
    remove_records(chain)
    dry = chain.rig.brewctl("db", "retention", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.count("may go") == 2
    said = dry.stdout.splitlines()
    (at,) = [place for place, line in enumerate(said) if line.startswith("processed_events_p1000: ")]
    assert said[at].startswith("processed_events_p1000: ids 1000 to 1009, about ")
    assert said[at].endswith(": stays")
    assert said[at + 1] == (
        "  its ids go far beyond the outbox's: they are another outbox's, or rubbish;"
        " it goes once the watermark has come to 1010"
    )
    assert said[at + 2].endswith("nothing; where they are rubbish, in psql: DROP TABLE processed_events_p1000")
    found = json.loads(chain.rig.brewctl("db", "retention", "--dry-run", "--json").stdout)
    assert [(each["name"], each["of"]) for each in found["strays"]] == [
        ("processed_events_p1000", []), ("processed_events_p1010", []),
    ]  # fmt: skip

    assert run(chain.rig.settings).dropped == ["outbox_p0", "outbox_p10", "processed_events_p0", "processed_events_p10"]
    names = ["p20", "p30", "p40", "p50", "p60", "p1000", "p1010"]
    assert attached(connection, "processed_events") == [f"processed_events_{name}" for name in names]
    assert connection.execute("SELECT FROM processed_events WHERE outbox_id = 1005").fetchone() is not None

    connection.execute("UPDATE retention SET dropped_below = 1010")
    assert "processed_events_p1000" in run(chain.rig.settings).dropped
    assert attached(connection, "processed_events") == ["processed_events_p1010"]
