"""What becomes of a line that can't be printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brewctl import stdout
from brewctl.errors import BrewError


def test_a_disk_that_is_full_is_said_and_nothing_more_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(BrewError, match=r"^stdout can't be written \(no space left on device\)$"):
            stdout.put("a line")
        assert os.fstat(full.fileno()).st_rdev == Path(os.devnull).stat().st_rdev


PROGRAM = """
import os, subprocess, sys, tempfile
from brewctl import stdout
stdout.prepare()
with tempfile.TemporaryFile() as file:
    assert file.fileno() > 2, "a file has taken the number of a stream"
    os.write(1, b"")
    stdout.put("✔ caf\\u00e9 \\udcff")
    print("a note", file=sys.stderr)
    child = "import os; [os.fstat(number) for number in range(3)]"
    subprocess.run([sys.executable, "-c", child], check=True)
    assert sys.stdin.read() == ""
    file.seek(0)
    assert file.read() == b"", "what was printed is in a file"
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_go_nowhere(closed: str) -> None:
    """As a service manager or cron may start a program. No file that is opened later gets what is printed."""
    ran = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, PROGRAM],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ("" if " >&-" in f" {closed}" else "✔ caf\u00e9 ?\n")
    assert ran.stderr == ("" if "2>&-" in closed else "a note\n")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"? caf? ?\n"), ("latin-1", b"? caf\xe9 ?\n")])
def test_what_an_encoding_lacks_is_replaced(encoding: str, shown: bytes) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, shown), ran.stderr
