"""`brewctl logs` without any server: what it shows, in a pipe and in a terminal, and how following ends."""

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BREWCTL, begin, run


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home in which two nodes have run."""
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "order-1.log").write_text("ts=2026-01-01T00:00:01Z a\n")
    (folder / "inventory-1.log").write_bytes(b"ts=2026-01-01T00:00:02Z \x1b[2J\xff\n")
    return {"BREW_HOME": str(tmp_path)}


def write(env: dict[str, str], text: str) -> None:
    with (Path(env["BREW_HOME"]) / "logs" / "order-1.log").open("a") as log:
        log.write(text)


def in_a_terminal(**env: str) -> str:
    controller, terminal = pty.openpty()
    given = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        subprocess.run([BREWCTL, "logs"], env={**given, **env}, stdin=terminal, stdout=terminal, timeout=60, check=True)
        return os.read(controller, 10_000).decode()
    finally:
        os.close(controller)
        os.close(terminal)


def test_each_line_is_behind_its_nodes_name_and_moves_no_cursor(env: dict[str, str]) -> None:
    shown = run("logs", env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        "order-1     | ts=2026-01-01T00:00:01Z a",
        r"inventory-1 | ts=2026-01-01T00:00:02Z \x1b[2J\xff",
    ]


def test_a_node_has_a_colour_in_a_terminal(env: dict[str, str]) -> None:
    coloured = in_a_terminal(**env, TERM="xterm")
    assert len(set(re.findall(r"\x1b\[(\d+)m\w+-1 +\|\x1b\[0m ts=", coloured))) == 2
    assert "\x1b" not in in_a_terminal(**env, TERM="xterm", NO_COLOR="1")


def test_a_node_that_has_no_log(env: dict[str, str], tmp_path: Path) -> None:
    for name in ("order-2", "../logs/order-1"):
        refused = run("logs", name, env=env)
        assert refused.returncode == 1
        hint = "there are logs of inventory-1, order-1"
        assert refused.stderr == f"brewctl: no log of {name!r} in {tmp_path}/logs: {hint}\n"


def test_there_are_no_logs(tmp_path: Path) -> None:
    shown = run("logs", env={"BREW_HOME": str(tmp_path)})
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", f"no logs in {tmp_path}/logs\n")


def test_it_is_followed_until_ctrl_c(env: dict[str, str]) -> None:
    process = begin("logs", "order-1", "--follow", env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == "order-1 | ts=2026-01-01T00:00:01Z a\n"
    write(env, "more\n")
    assert process.stdout.readline() == "order-1 | more\n"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (130, "", "brewctl: interrupted\n")


def test_it_is_followed_until_its_reader_goes(env: dict[str, str]) -> None:
    with begin("logs", "--follow", env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        write(env, "more\n")
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_names_are_completed(env: dict[str, str]) -> None:
    def completed(words: str) -> tuple[str, str]:
        asked = {"_BREWCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2"}
        done = run(env={**env, **asked})
        return done.stdout.strip(), done.stderr

    assert completed("brewctl logs o") == ("order-1", "")
    assert completed("brewctl start i") == ("inventory", "")
    # Whatever goes wrong, the line that is being typed is left alone.
    (Path(env["BREW_HOME"]) / "state.json").write_text("{")
    assert completed("brewctl stop ") == ("", "")
