"""How roles reach the server that takes writes, before and after a failover."""

import dataclasses
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from brewctl.config import environment
from brewctl.lab.play.nodes import Nodes
from brewctl.lifecycle import wait_until
from tests.conftest import run
from tests.integration.failover_tools import WAIT_S, Flow, open_flow
from tests.tcp_proxy import proxied


@pytest.fixture
def flow(servers: dict[str, str], tmp_path: Path) -> Iterator[Flow]:
    with open_flow(servers, tmp_path / "logs") as flow:
        yield flow


def test_roles_leave_a_server_that_takes_no_writes_any_more(flow: Flow) -> None:
    """The old primary lives on, demoted: its connections are of no use to anybody."""
    pair = flow.pair
    roles = [flow.start("order-1", "serve", "order", "--port", "0"), *flow.start_consumers()]
    before = flow.create(3)
    flow.settle(pair.primary, before)
    flow.replicate()
    pair.primary.ask("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.ask("SELECT pg_reload_conf()")
    wait_until(
        "a word of it",
        lambda: "takes no writes" in roles[0].log.read_text("utf-8"),
        timeout_s=WAIT_S,
    )
    pair.promote()
    after = flow.create(3)
    flow.settle(pair.standby, before | after)
    assert all(node.alive for node in roles)
    assert pair.primary.ask("SELECT count(*) FROM orders") == len(before)


def test_a_role_that_reaches_a_standby_alone_says_so_and_waits_for_its_promotion(flow: Flow) -> None:
    pair = flow.pair
    flow.replicate()
    for url in (pair.standby.url, f"{pair.standby.url}?target_session_attrs=read-write"):
        alone = dataclasses.replace(flow.settings, database_url=url)
        for command in (("publish",), ("serve", "order", "--port", "0"), ("consume", "inventory")):
            done = run(*command, env=environment(alone))
            assert done.returncode == 3, done.stderr
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"brewctl: postgres 127.0.0.1:{pair.standby.port}/brew takes no writes: name the ")
    with Nodes(alone, logs=flow.nodes._logs, on_line=lambda _line: None) as nodes:
        node = nodes.start("publisher-9", "publish", "--wait", "forever")
        wait_until("a word of it", lambda: "takes no writes" in node.log.read_text("utf-8"), timeout_s=WAIT_S)
        pair.fail_over()
        node.wait_ready(timeout_s=WAIT_S)


def test_an_address_that_moves_to_the_promoted_standby(flow: Flow) -> None:
    """One name or address for all servers, as a cloud's or a load balancer's: clients see connections end."""
    pair = flow.pair
    with proxied("127.0.0.1", pair.primary.port) as address:
        moved = make_conninfo(pair.primary.url, port=address.port)
        one = Flow(pair, dataclasses.replace(flow.settings, database_url=moved), flow.nodes)
        with Nodes(one.settings, logs=flow.nodes._logs, on_line=lambda _line: None) as one.nodes:
            roles = [one.start("order-1", "serve", "order", "--port", "0"), *one.start_consumers()]
            before = one.create(3)
            one.settle(pair.primary, before)
            one.replicate()
            pair.primary.kill()
            address.move("127.0.0.1", pair.standby.port)
            pair.promote()
            after = one.create(3)
            one.settle(pair.standby, before | after)
            assert all(node.alive for node in roles)
            code, said = one.brewctl("verify", "--wait", "60")
            assert code == 0, said


def test_a_host_that_swallows_everything_is_passed_by(flow: Flow) -> None:
    """A lost machine refuses nothing: each connection tries the next one after connect_timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{flow.pair.primary.port}"
        url = re.sub("@.*/", f"@{hosts}/", flow.pair.primary.url)
        settings = dataclasses.replace(flow.settings, database_url=f"{url}?connect_timeout=2")
        for command in (("counts",), ("db", "init")):
            done = run(*command, env=environment(settings))
            assert done.returncode == 0, done.stderr
