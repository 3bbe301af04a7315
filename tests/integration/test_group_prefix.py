"""Two deployments on one cluster and one topic, told apart by the prefix of their groups."""

import dataclasses
from pathlib import Path

from brewctl.delivery.broker import open_admin
from brewctl.lab.play.nodes import Nodes
from brewctl.overview import consumer_groups
from tests.conftest import Rig, open_rig
from tests.integration.kafka_tools import finish, good_record, raw_client, send_raw

RECORDS = 12


def test_each_deployment_gets_every_record(rig: Rig, servers: dict[str, str], tmp_path: Path) -> None:
    topic = rig.settings.topic
    with (
        open_rig(servers, tmp_path / "second") as second,
        Nodes(dataclasses.replace(rig.settings, group_prefix="a."), logs=tmp_path / "a", on_line=print) as ours,
        Nodes(
            dataclasses.replace(second.settings, topic=topic, group_prefix="b."), logs=tmp_path / "b", on_line=print
        ) as theirs,
        open_admin(rig.settings) as admin,
    ):
        started = [nodes.start("inventory-1", "consume", "inventory") for nodes in (ours, theirs)]
        for node in started:
            node.wait_ready(timeout_s=120)
            assert any(line.endswith("partitions assigned [0, 1, 2, 3, 4, 5]") for line in node.lines), node.lines
        with raw_client(rig.settings) as client:
            for number in range(RECORDS):
                good = good_record()
                send_raw(client, (topic, number % 6), good.key, good.value, good.headers)
        for each in (rig, second):
            each.wait("every reservation", lambda each=each: each.counts().reservations == RECORDS)  # type: ignore[misc]
        shown = {
            view.name: view
            for view in consumer_groups.groups(admin, dataclasses.replace(rig.settings, group_prefix="a."))
        }
        assert [member.client_id for member in shown["a.inventory"].members] == ["inventory-1"]
        rig.wait("its lag", lambda: sum(admin.committed("a.inventory", topic).values()) == RECORDS)
        rig.wait("their lag", lambda: sum(admin.committed("b.inventory", topic).values()) == RECORDS)
        assert admin.committed("inventory", topic) == {}
        assert [finish(node) for node in started] == [0, 0]
    (consumers,) = rig.connection.execute("SELECT array_agg(DISTINCT consumer) FROM processed_events").fetchone() or ()
    assert consumers == ["inventory"], (
        "dedup rows know no prefix: one that is set later does not let effects happen again"
    )
