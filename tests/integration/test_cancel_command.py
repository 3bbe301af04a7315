"""`brewctl cancel-order`, `trace` of what it cancelled, and `load --cancel`, on real servers."""

import json

from brewctl import overview
from tests.conftest import Rig
from tests.integration.grpc_tools import rows

UNKNOWN = "0199c2f4-1b2c-7000-8000-0123456789ab"


def cancelled(rig: Rig) -> int:
    ((count,),) = rig.connection.execute("SELECT count(*) FROM orders WHERE cancelled_at IS NOT NULL").fetchall()
    assert isinstance(count, int)
    return count


def test_orders_are_cancelled_by_their_ids_or_the_beginnings_of_them(rig: Rig) -> None:
    _, address = rig.serve()
    rig.env["BREW_ORDER_ADDRS"] = address
    made = rig.brewctl("create-order", "--customer", "c1", "--count", "4", "--json").stdout.splitlines()
    first, second, third, fourth = (json.loads(line)["order_id"] for line in made)
    keys = {json.loads(line)["order_id"]: json.loads(line)["idempotency_key"] for line in made}

    # An id in full needs no database.
    done = rig.brewctl("cancel-order", f"order-{first}", "--database-url", "postgresql://127.0.0.1:1/none")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{first}\n", "")
    again = rig.brewctl("cancel-order", first, "--json")
    assert json.loads(again.stdout) == {"order_id": first, "status": "ORDER_STATUS_CANCELLED"}
    assert rows(rig) == (4, 5)

    # What is wrong with one is said of it; the others are cancelled.
    done = rig.brewctl("cancel-order", UNKNOWN, second[:35], third, "--reason", "out of beans")
    assert (done.returncode, done.stdout) == (1, f"{second}\n{third}\n")
    *said, last = done.stderr.splitlines()
    assert said == [f"no order is {UNKNOWN}"]
    assert last.startswith("brewctl: 1 of 3 orders were not cancelled: ")
    done = rig.brewctl("cancel-order", UNKNOWN, fourth)
    assert (done.returncode, done.stdout) == (1, f"{fourth}\n")
    assert f"answered NOT_FOUND: no order '{UNKNOWN}'" in done.stderr
    assert cancelled(rig) == 4

    one = rig.brewctl("cancel-order", UNKNOWN)
    assert (one.returncode, one.stdout, one.stderr.count("\n")) == (1, "", 1)
    assert f"answered NOT_FOUND: no order '{UNKNOWN}'" in one.stderr
    several = rig.brewctl("cancel-order", first[:1])
    assert (several.returncode, "give more of the id" in several.stderr) == (1, True)

    again = rig.brewctl("create-order", "--customer", "c1", "--idempotency-key", keys[first], "--json")
    assert json.loads(again.stdout)["status"] == "ORDER_STATUS_CANCELLED"


def test_what_is_wrong_is_one_line_and_an_exit_code(rig: Rig) -> None:
    _, address = rig.serve()
    made = rig.brewctl("create-order", "--customer", "c1", "--addr", address).stdout.strip()
    for reason, said in (("x" * 10_000, "reason must have 0 to 500 characters, not 10000"), ("a\tb", "control")):
        wrong = rig.brewctl("cancel-order", made, made, "--addr", address, "--reason", reason)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
        assert said in wrong.stderr
    nobody = rig.brewctl("cancel-order", made, "--addr", "127.0.0.1:1")
    assert (nobody.returncode, nobody.stdout, nobody.stderr.count("\n")) == (3, "", 1)
    assert "refused the connection" in nobody.stderr
    away = rig.brewctl("cancel-order", made[:8], "--addr", address, "--database-url", "postgresql://127.0.0.1:1/none")
    assert (away.returncode, away.stdout, away.stderr.count("\n")) == (3, "", 1)
    assert cancelled(rig) == 0


def test_the_trace_of_a_cancelled_order(rig: Rig) -> None:
    _, address = rig.serve()
    order_id = rig.brewctl("create-order", "--customer", "c1", "--addr", address).stdout.strip()
    rig.start("inventory-1", "consume", "inventory")
    consumer = rig.start("notification-1", "consume", "notifications")
    assert rig.brewctl("trace", order_id, "--follow").returncode == 0
    assert json.loads(rig.brewctl("trace", order_id, "--json").stdout)["status"] == "ORDER_STATUS_NEW"
    consumer.kill()
    assert rig.brewctl("cancel-order", order_id, "--addr", address, "--reason", "out of beans").returncode == 0
    rig.wait("its publishing", lambda: rig.counts().outbox_unpublished == 0)
    waiting = rig.brewctl("trace", order_id)
    assert waiting.returncode == 0
    assert "not told by group notifications: it is next in partition" in " ".join(waiting.stdout.split())
    rig.start("notification-2", "consume", "notifications")
    done = rig.brewctl("trace", order_id, "--follow")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1].endswith(" ms after its cancel: published, released and told")) == (0, True)
    assert any(" cancelled  outbox row 2: out of beans" in line for line in lines)
    document = json.loads(rig.brewctl("trace", order_id, "--json").stdout)
    assert (document["status"], document["finished"]) == ("ORDER_STATUS_CANCELLED", True)
    whats = [step["what"] for step in document["steps"]]
    assert sorted(whats) == sorted(
        ["created", "written", "published", "reserved", "notified", "cancelled", "published", "released", "told"]
    )
    assert rig.counts() == overview.Counts(1, 0, 1, 1), "the four counters are the contract's"


def test_a_load_cancels_a_share(rig: Rig) -> None:
    (_, one), (_, other) = rig.serve("order-1"), rig.serve("order-2")
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    arguments = ("--orders", "200", "--warmup", "0", "--concurrency", "8", "--cancel", "0.1", "--json")
    done = rig.brewctl("load", "--addr", one, "--addr", other, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)["cancels"]
    assert (shown["count"], shown["acknowledged"], cancelled(rig)) == (20, 20, 20)
    assert rows(rig) == (200, 220)

    def finished() -> bool:
        return rig.counts() == overview.Counts(200, 0, 200, 200) and not overview.unfinished(rig.databases)

    rig.wait("every effect", finished)
    ((released, told),) = rig.connection.execute(
        "SELECT (SELECT count(released_at) FROM inventory_reservations),"
        " (SELECT count(*) FROM notifications_log WHERE state = 'cancelled')"
    ).fetchall()
    assert (released, told) == (20, 20)
