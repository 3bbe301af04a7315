"""The installed binary's exit code and lines, whatever its streams are."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BREWCTL


def test_a_reader_that_goes_early_is_no_error(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"({BREWCTL} db init --print-sql; echo $? >&2) | true"],
        env={**os.environ, "BREW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == "0\n"


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    [
        ("db init --print-sql", ">&- 2>&- <&-", 0),
        ("nope", "2>/dev/full", 2),
        ("create-order --customer c1 --addr 127.0.0.1:1", "<&- >&- 2>&-", 3),
        ("db init --print-sql", ">/dev/full", 1),
        ("--help", ">/dev/full", 1),
    ],
)
def test_the_exit_code_is_right_whatever_the_streams_are(
    tmp_path: Path, arguments: str, closed: str, code: int
) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"{BREWCTL} {arguments} {closed}"],
        env={**os.environ, "BREW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.strip() in {"", "brewctl: stdout can't be written (no space left on device)"}


def test_the_module_is_the_same_command(tmp_path: Path) -> None:
    env = {**os.environ, "BREW_HOME": str(tmp_path)}
    starts = ([BREWCTL], [str(Path(BREWCTL).with_name("python")), "-m", "brewctl"])
    binary, module = (
        subprocess.run([*start, "nope"], env=env, capture_output=True, text=True, timeout=60, check=False)
        for start in starts
    )
    assert (module.returncode, module.stderr) == (binary.returncode, binary.stderr)
    assert module.returncode == 2
