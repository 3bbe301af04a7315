"""Who may run retention: the tables' owner. Who only looks may see its plan. And a pooler between."""

import dataclasses

import pytest

from tests.integration.chain_tools import open_chain
from tests.integration.retention_tools import attached, fill, remove_records, run, small_partitions
from tests.integration.rights_tools import Roles, dropped
from tests.pgbouncer import pooled


def test_the_owner_drops_a_reader_sees_the_plan_and_the_operator_is_refused(
    servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain, dropped(chain.rig) as prefix:
        small_partitions(chain.rig.connection)
        fill(chain, 12)
        remove_records(chain)
        roles = Roles(chain.rig, prefix)
        given = chain.rig.brewctl("db", "grants", "--apply", "--prefix", prefix)
        assert given.returncode == 0, given.stderr

        def brewctl(role: str, *words: str) -> tuple[int, str, str]:
            chain.rig.env["BREW_DATABASE_URL"] = roles.url(role)
            done = chain.rig.brewctl("db", "retention", *words)
            return done.returncode, done.stdout, done.stderr

        code, said, problem = brewctl("reader", "--dry-run")
        assert (code, problem) == (0, "")
        assert "outbox_p0: ids 0 to 9, 9 rows" in said
        code, _, problem = brewctl("operator")
        assert code == 1
        assert "lacks a right: permission denied for table retention" in problem
        assert attached(chain.rig.connection, "outbox")[0] == "outbox_p0"
        code, said, problem = brewctl("owner")
        assert code == 0, problem
        assert "dropped    outbox_p0, processed_events_p0" in said


def test_retention_works_behind_a_pooler_of_transactions(
    servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain, pooled(chain.rig.settings.database_url) as url:
        small_partitions(chain.rig.connection)
        fill(chain, 12)
        remove_records(chain)
        outcome = run(dataclasses.replace(chain.rig.settings, database_url=url))
        assert outcome.dropped == ["outbox_p0", "processed_events_p0"]
        assert outcome.watermark == 10
