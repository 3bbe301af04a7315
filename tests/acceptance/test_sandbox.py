"""The sandbox of a user: up, up again, killed servers, stale state, side by side, down."""

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from brewctl.lifecycle import wait_until
from brewctl.sandbox import postgres
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State, load, save
from tests.acceptance.conftest import brewctl, environment, pid, status
from tests.conftest import begin, run


def test_every_server_answers_and_a_second_up_changes_nothing(home: Path) -> None:
    before = status(home)
    assert set(before) == {"postgres", "kafka-1"}
    assert all(row["answers"] for row in before.values())
    assert all(Path(str(row["log"])).exists() for row in before.values())
    for row in before.values():
        os.kill(int(str(row["pid"])), signal.SIGSTOP)
    again = brewctl(home, "up")  # which lets go on what is paused
    assert again.returncode == 0, again.stderr
    assert "next" in again.stdout
    after = status(home)
    assert all(row["answers"] for row in after.values())
    assert {name: row["pid"] for name, row in after.items()} == {name: row["pid"] for name, row in before.items()}


def test_two_brokers_more_are_refused(home: Path) -> None:
    refused = brewctl(home, "up", "--brokers", "3")
    assert refused.returncode == 2
    assert "brewctl down --purge" in refused.stderr


def test_only_loopback_is_listened_on(home: Path) -> None:
    for name in ("postgres", "kafka-1"):
        process = psutil.Process(pid(home, name))
        listening = [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert listening
        assert all(address.removeprefix("::ffff:") == "127.0.0.1" for address in listening), listening
    assert not [c for c in psutil.Process(pid(home, "postgres")).net_connections("unix") if c.laddr]


def test_postgres_is_its_owners_alone(home: Path) -> None:
    url = environment(home)["BREW_DATABASE_URL"]
    with psycopg.connect(url) as connection:
        assert connection.execute("SHOW server_version_num").fetchone() >= ("180000",)  # type: ignore[operator]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(psycopg.conninfo.make_conninfo(url, password="guessed"))
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "state.json").stat().st_mode) == 0o600


def test_the_password_is_shown_by_env_alone(home: Path) -> None:
    password = json.loads((home / "state.json").read_text())["password"]
    assert password in brewctl(home, "env").stdout
    for command in (["status"], ["status", "--json"], ["up"], ["counts"]):
        shown = brewctl(home, *command)
        assert password not in shown.stdout + shown.stderr
    for name in ("postgres", "kafka-1"):
        assert not any(password in argument for argument in psutil.Process(pid(home, name)).cmdline())


def test_killed_servers_are_seen_and_brought_back_with_their_data(home: Path) -> None:
    with psycopg.connect(environment(home)["BREW_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    for name in ("postgres", "kafka-1"):
        killed = pid(home, name)
        os.kill(killed, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(killed)] if psutil.pid_exists(killed) else [], timeout=10)
    down = brewctl(home, "status")
    assert down.returncode == 1
    assert "stopped" in down.stdout
    unreachable = brewctl(home, "counts")
    assert unreachable.returncode == 3
    assert re.fullmatch(
        r"brewctl: postgres 127\.0\.0\.1:\d+/brew refused the connection: .*`brewctl up`.*\n", unreachable.stderr
    )
    assert brewctl(home, "up").returncode == 0
    assert all(row["answers"] for row in status(home).values())
    with psycopg.connect(environment(home)["BREW_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_a_pid_of_somebody_else_is_left_alone(home: Path) -> None:
    """After a reboot a stored pid may be anybody's: its start time tells."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        down = brewctl(home, "down")
        assert "stopped kafka-1, postgres" in down.stdout
        path = home / "state.json"
        state = json.loads(path.read_text())
        state["servers"] = {
            "postgres": {
                "name": "postgres",
                "pid": bystander.pid,
                "started": 1.0,
                "port": 1,
                "log": str(home / "no.log"),
            }
        }
        path.write_text(json.dumps(state))
        assert status(home)["postgres"]["pid"] is None
        assert "nothing was running" in brewctl(home, "down").stdout
        assert bystander.poll() is None
        assert brewctl(home, "up").returncode == 0
    finally:
        bystander.kill()
        bystander.wait()


def test_data_that_a_server_uses_are_not_removed(home: Path) -> None:
    """A state that does not know a running server, as a damaged one, is no leave to delete below it."""
    pids = {name: row["pid"] for name, row in status(home).items()}
    path = home / "state.json"
    known = path.read_text()
    try:
        path.write_text("{")
        purge = brewctl(home, "down", "--purge")
    finally:
        path.write_text(known)
    assert purge.returncode == 1
    assert f"{home} is still used by process" in purge.stderr
    assert all(str(pid) in purge.stderr for pid in pids.values())
    assert {name: row["pid"] for name, row in status(home).items()} == pids
    assert brewctl(home, "counts").returncode == 0


def test_a_taken_port_is_named(home: Path) -> None:
    port = int(str(status(home)["postgres"]["port"]))
    assert brewctl(home, "down").returncode == 0
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        taken = brewctl(home, "up")
    assert taken.returncode == 1
    assert f"port {port} for postgres" in taken.stderr
    # What that `up` had started is gone.
    assert all(row["pid"] is None for row in status(home).values())
    assert brewctl(home, "up").returncode == 0


def test_a_damaged_state_file_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.joinpath("state.json").write_text("{")
    for command in ("up", "status", "down", "env", "counts"):
        damaged = brewctl(tmp_path, command)
        assert damaged.returncode == 1
        assert damaged.stderr.count("\n") == 1
        assert "state.json is damaged: run `brewctl down --purge`" in damaged.stderr
    assert brewctl(tmp_path, "down", "--purge").returncode == 0
    assert not tmp_path.joinpath("state.json").exists()


def test_a_home_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    refused = brewctl(tmp_path / "file" / "home", "up")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "BREW_HOME" in refused.stderr


def test_an_interrupted_up_leaves_nothing_behind_and_forgets_no_node(tmp_path: Path) -> None:
    nodes = State.without_sandbox()
    nodes.nodes["order-1"] = Server("order-1", os.getpid(), 1.0, 50081, "no.log", role="order")
    save(tmp_path, nodes)
    process = begin("up", "--brokers", "1", env={"BREW_HOME": str(tmp_path)})
    state = tmp_path / "state.json"
    wait_until("a server started", lambda: '"kafka-1"' in state.read_text(), timeout_s=60, every_s=0.02)
    servers = json.loads(state.read_text())["servers"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert servers
    # Ended by then; the entry of a process whose parent has gone stays until the system has looked after it.
    pids = [server["pid"] for server in servers.values()]
    wait_until("no entry of a server", lambda: not any(map(psutil.pid_exists, pids)), timeout_s=30)
    left = load(tmp_path)
    assert left is not None
    assert (left.has_sandbox, left.servers, left.nodes) == (True, {}, nodes.nodes)


def test_a_sandbox_with_a_database_for_each_service(tmp_path: Path) -> None:
    try:
        made = up_with_a_port_taken(tmp_path, "--brokers", "1", "--databases", "separate")
        assert made.returncode == 0, made.stderr
        assert "a port was taken meanwhile" in made.stderr
        named = environment(tmp_path)
        for name in ("inventory", "notifications"):
            assert named[f"BREW_{name.upper()}_DATABASE_URL"].endswith(f"/{name}")
            assert f"/{name}\n" in made.stdout
        other = brewctl(tmp_path, "up", "--databases", "one")
        assert (other.returncode, "this sandbox has a database for each service" in other.stderr) == (2, True)
        assert brewctl(tmp_path, "up").returncode == 0
        assert "databases: brew, inventory, notifications\n" in brewctl(tmp_path, "status").stdout

        started = brewctl(tmp_path, "start", "order", "inventory", "notifications")
        assert started.returncode == 0, started.stderr
        ordered = brewctl(tmp_path, "create-order", "--customer", "c1", "--count", "3", "--trace")
        assert ordered.returncode == 0, ordered.stderr
        counted = brewctl(tmp_path, "counts")
        assert counted.stdout == "counts: orders=3 outbox_unpublished=0 reservations=3 notifications=3\n"
        with psycopg.connect(named["BREW_INVENTORY_DATABASE_URL"]) as connection:
            assert connection.execute("SELECT count(*) FROM inventory_reservations").fetchone() == (3,)
        assert brewctl(tmp_path, "verify", "--wait", "30", "--late", "0").returncode == 0
        foreign = {"BREW_INVENTORY_DATABASE_URL": "postgresql://somebody@127.0.0.1:1/theirs"}
        refused = run("demo", env={"BREW_HOME": str(tmp_path), **foreign})
        assert (refused.returncode, "BREW_INVENTORY_DATABASE_URL leads elsewhere" in refused.stderr) == (2, True)
    finally:
        down = brewctl(tmp_path, "down", "--purge")
    assert down.returncode == 0, down.stderr


def up_with_a_port_taken(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Make a new sandbox whose broker finds its port taken, which was free when it was chosen."""
    process = begin("up", *options, env={"BREW_HOME": str(home)})
    state = home / "state.json"
    wait_until("a broker that starts", lambda: state.exists() and '"kafka-1"' in state.read_text(), timeout_s=60)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", json.loads(state.read_text())["kafka_ports"][0][0]))
        other.listen()
        out, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else for PostgreSQL")
def test_as_root_postgres_finds_its_files_in_a_folder_of_roots_alone(tmp_path: Path) -> None:
    """A clone below /root: the binaries, too, are where `nobody` may not walk. Nothing is opened for it."""
    binary = tmp_path / "initdb"
    binary.write_text("")
    binary.chmod(0o755)
    tmp_path.chmod(0o700)
    seen = subprocess.run(
        [
            *postgres._unprivileged(),
            sys.executable,
            "-c",
            f"import os; print(os.getuid(), os.access({str(binary)!r}, os.X_OK))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout == f"{pwd.getpwnam('nobody').pw_uid} True\n"
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
