"""One node publishes for all while that is enough: who leads, who leaves its commits to it, and how that ends."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from brewctl.config import Settings
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox import lead
from brewctl.delivery.outbox.lead import Lead
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, limited, open_rig
from tests.integration.test_publisher_pace import NEVER_S, Running, commit, unpublished

LASTS_S = 0.4


@pytest.fixture(scope="module")
def shared_rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("lead")) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """Nobody leads, and no row waits."""
    shared_rig.connection.execute("TRUNCATE outbox, publishing")
    return shared_rig


@pytest.fixture
def settings(rig: Rig) -> Settings:
    return limited(rig.settings, publish_lead_s=LASTS_S)


@pytest.fixture
def a(settings: Settings, pool: Pool) -> Lead:
    return Lead(settings.limits, pool, node="a")


@pytest.fixture
def b(settings: Settings, pool: Pool) -> Lead:
    return Lead(settings.limits, pool, node="b")


def note(lead: Lead, *, share: float = 0.5, more: bool = False) -> None:
    """Let so long pass that the lead is decided anew, of which the node's transactions took this share."""
    wait_until("the next decision", lambda: time.monotonic() - lead._since > LASTS_S / 2, timeout_s=5, every_s=0.01)
    took_s = share * (time.monotonic() - lead._since)
    lead.note(took_s=took_s, found=1 if share else 0, gap_s=0.0, more=more)


def test_a_node_with_little_to_do_leads_nobody(rig: Rig, a: Lead) -> None:
    note(a, share=0.01)
    assert not a.ours
    assert rig.connection.execute("SELECT count(*) FROM publishing").fetchone() == (0,)


def test_of_two_busy_nodes_one_leads_and_the_other_leaves_it_to_that_one(a: Lead, b: Lead) -> None:
    note(a)
    note(b)
    assert (a.ours, a.others_s()) == (True, 0.0)
    assert not b.ours
    assert 0 < b.others_s() <= 2 * LASTS_S


def test_the_lead_is_renewed_while_there_is_something_to_do_and_then_given_up(a: Lead, b: Lead) -> None:
    note(a)
    note(b)
    note(a, share=0.2)
    assert a.ours, "less work keeps the lead than takes it"
    note(a, share=0.0)
    assert not a.ours
    wait_until("nobody else to lead", lambda: b.others_s() == 0, timeout_s=5, every_s=0.01)
    note(b)
    assert b.ours


def test_the_lead_of_a_node_that_was_killed_ends_by_itself(a: Lead, b: Lead) -> None:
    note(a)
    note(b)
    assert b.others_s() > 0
    wait_until("the end of the lead", lambda: b.others_s() == 0, timeout_s=5, every_s=0.01)
    note(b)
    assert b.ours


def test_who_waits_for_the_lead_to_end_finds_it_renewed(a: Lead, b: Lead) -> None:
    note(a)
    note(b)
    for _ in range(3):
        note(a)
        assert b.others_s() > 0


def test_where_one_node_is_not_enough_nobody_leads(a: Lead, b: Lead) -> None:
    note(a)
    note(a, more=True)
    assert not a.ours
    note(b, more=True)
    assert (b.ours, b.others_s()) == (False, 0.0)


def test_a_node_of_the_same_name_shares_the_lead(settings: Settings, pool: Pool, a: Lead) -> None:
    twin = Lead(settings.limits, pool, node="a")
    note(a)
    note(twin)
    assert a.ours
    assert twin.ours


@pytest.mark.parametrize("ends_in", ["1 day", "-1 day"])
def test_a_lead_that_another_clock_wrote_holds_nobody_up(rig: Rig, b: Lead, ends_in: str) -> None:
    rig.connection.execute(
        "INSERT INTO publishing (node_id, ends_at) VALUES ('a', clock_timestamp() + %s::interval)", (ends_in,)
    )
    note(b, share=0.01)
    assert b.others_s() == 0
    note(b)
    assert b.ours


def test_commits_of_both_are_published_by_one_until_it_ends(
    rig: Rig, pool: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lead, "_TAKE", 0.0)
    settings = limited(settings, publish_poll_s=NEVER_S)

    def published() -> dict[str, int]:
        return dict(rig.connection.execute("SELECT publisher_node, count(*) FROM outbox GROUP BY 1").fetchall())

    def let_both_publish() -> bool:
        for node in (one, other):
            commit(rig)
            node.notify()
        return (one._lead.ours or other._lead.ours) and max(one._lead.others_s(), other._lead.others_s()) > 0

    with contextlib.ExitStack() as running:
        one, other = Running(settings, pool, node="one"), Running(settings, pool, node="other")
        running.enter_context(one)
        running.enter_context(other)
        wait_until("a lead", let_both_publish, timeout_s=20, every_s=0.02)
        leader, follower = (one, other) if one._lead.ours else (other, one)
        wait_until("an empty outbox", lambda: unpublished(rig) == 0, timeout_s=20, every_s=0.01)
        before, looks = published(), len(follower.found)
        for _ in range(20):
            commit(rig)
            follower.notify()
            wait_until("its row published", lambda: unpublished(rig) == 0, timeout_s=20, every_s=0.01)
        assert published()[leader._node] == before[leader._node] + 20
        assert len(follower.found) == looks

        leader.__exit__()
        commit(rig)
        follower.notify()
        wait_until("its row published", lambda: unpublished(rig) == 0, timeout_s=20, every_s=0.01)
        assert published()[follower._node] == before.get(follower._node, 0) + 1
