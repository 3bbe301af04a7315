"""What a sandbox remembers: saved whole, read back or refused, changed by one command at a time."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from brewctl.errors import BrewError
from brewctl.sandbox import state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State


def sandbox(*, running: bool = True) -> State:
    servers = {
        "postgres": Server("postgres", 4711, 1700000000.25, 5433, "/logs/postgres.log"),
        "kafka-1": Server("kafka-1", 4712, 1700000001.5, 9092, "/logs/server.log"),
    }
    return State(
        password="hunter2",
        cluster_id="abc",
        postgres_port=5433,
        kafka_ports=[(9092, 19092), (9093, 19093)],
        servers=servers if running else {},
        nodes={"order-1": Server("order-1", 4713, 1700000002.5, 50081, "/logs/order-1.log", "boot 7", "order", 12)},
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    assert state.load(tmp_path) == sandbox()


def test_a_home_may_have_nodes_alone(tmp_path: Path) -> None:
    known = State.without_sandbox()
    known.nodes.update(sandbox().nodes)
    state.save(tmp_path, known)
    assert state.load(tmp_path) == known
    assert not known.has_sandbox
    assert sandbox().has_sandbox


def test_a_file_from_before_there_were_nodes_is_loaded(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    path = tmp_path / "state.json"
    older = json.loads(path.read_text())
    del older["nodes"]
    for server in older["servers"].values():
        del server["role"], server["log_start"]
    path.write_text(json.dumps(older))
    loaded = state.load(tmp_path)
    assert loaded is not None
    assert loaded.servers == sandbox().servers
    assert loaded.nodes == {}


def test_nothing_is_there(tmp_path: Path) -> None:
    assert state.load(tmp_path) is None
    assert state.load(tmp_path / "absent") is None


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state.save(tmp_path, sandbox())
    finally:
        os.umask(before)
    assert mode(tmp_path / "state.json") == 0o600


def test_a_save_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save(tmp_path, sandbox())

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BrewError, match=r"can't be written \(no space left"):
        state.save(tmp_path, sandbox(running=False))
    assert state.load(tmp_path) == sandbox()


def test_a_save_leaves_no_other_file(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    state.save(tmp_path, sandbox(running=False))
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b'{"version": 1}',
        b'{"version": 1, "servers": {}, "kafka_ports": [], "unknown": 1}',
        b'{"version": 1, "servers": [], "kafka_ports": []}',
        b'{"version": 1, "servers": {"postgres": {"pid": 1}}, "kafka_ports": []}',
        b'{"version": 1, "servers": {}, "nodes": {"order-1": {"pid": 1}}, "kafka_ports": []}',
        b'{"version": 1, "servers": {}, "kafka_ports": [["a", "b"]]}',
        b'{"version": 1, "servers": {}, "kafka_ports": [[1]]}',
    ],
)
def test_a_damaged_file_names_the_way_out(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "state.json").write_bytes(text)
    with pytest.raises(BrewError) as refused:
        state.load(tmp_path)
    mend = "run `brewctl down --purge`, which deletes the sandbox's data"
    assert str(refused.value) == f"{tmp_path}/state.json is damaged: {mend}"


@pytest.mark.parametrize("cut", [1, 50, 200])
def test_half_a_file_is_damaged(tmp_path: Path, cut: int) -> None:
    state.save(tmp_path, sandbox())
    whole = (tmp_path / "state.json").read_bytes()
    (tmp_path / "state.json").write_bytes(whole[:-cut])
    with pytest.raises(BrewError, match="is damaged"):
        state.load(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(tmp_path: Path, version: object) -> None:
    state.save(tmp_path, sandbox())
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    with pytest.raises(BrewError, match="is of another version of brewctl: run `brewctl down --purge`"):
        state.load(tmp_path)


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(BrewError, match="can't be read"):
        state.load(tmp_path / "home")


def test_endpoints_of_a_running_sandbox(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    assert state.endpoints(tmp_path) == {
        "database_url": "postgresql://brew:hunter2@127.0.0.1:5433/brew",
        "brokers": "127.0.0.1:9092,127.0.0.1:9093",
    }


def test_no_endpoints_where_nothing_runs(tmp_path: Path) -> None:
    assert state.endpoints(tmp_path) == {}
    state.save(tmp_path, sandbox(running=False))
    assert state.endpoints(tmp_path) == {}


def test_locked_makes_the_home_and_closes_it_to_others(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    with state.locked(home):
        assert mode(home) == 0o700


def test_locked_in_a_place_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrewError, match="BREW_HOME"), state.locked(tmp_path / "file" / "home"):
        pass


HOLDER = """
import sys
from pathlib import Path
from brewctl.sandbox.state import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process holds the lock until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.stdin.close()


def test_the_lock_excludes_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_LOCK_WAIT_S", -1)
    with (
        held(tmp_path),
        pytest.raises(BrewError, match=f"^another brewctl is still at work in {tmp_path}"),
        state.locked(tmp_path),
    ):
        pass
    with state.locked(tmp_path):  # the other one has ended
        pass


def test_the_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path) as holder:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(30)

        clock = SimpleNamespace(monotonic=time.monotonic, sleep=pause)
        monkeypatch.setattr("brewctl.sandbox.state.time", clock)
        with state.locked(tmp_path):
            assert len(pauses) == 1


def test_a_killed_holder_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path) as holder:
        holder.kill()
        holder.wait(30)
        monkeypatch.setattr(state, "_LOCK_WAIT_S", -1)
        with state.locked(tmp_path):
            pass


def test_nobody_else_may_write_above_a_new_home(tmp_path: Path) -> None:
    """A umask of 000 would let every user put another program's files there."""
    before = os.umask(0)
    try:
        with state.locked(tmp_path / "one" / "two" / "home"):
            pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "one", tmp_path / "one" / "two")]
    assert modes == [0o755, 0o755]
    assert stat.S_IMODE((tmp_path / "one" / "two" / "home").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_used_names_its_own_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BrewError, match="not a directory") as refused,
        state.locked(tmp_path / "file" / "cache", variable="XDG_CACHE_HOME"),
    ):
        pass
    assert refused.value.hint == "set XDG_CACHE_HOME to a folder of yours"
