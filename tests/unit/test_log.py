"""Log lines, as another program reads them: a process of its own logs, its stderr is read."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from brewctl import log

PROLOGUE = """
import logging, sys
from brewctl import log
node, fmt, verbose = sys.argv[1:]
log.configure(node=node, as_json=fmt == "json", verbose=verbose == "verbose")
logger = log.get("brewctl.test")
library = logging.getLogger("library")
"""


def logged(program: str, *, node: str = "order-1", fmt: str = "logfmt", verbose: bool = False) -> list[str]:
    """Run a program that logs with `logger` and `library` and return its lines on stderr."""
    ran = subprocess.run(
        [sys.executable, "-c", PROLOGUE + program, node, fmt, "verbose" if verbose else ""],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def parsed(program: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in logged(program, fmt="json")]
    for line in lines:
        assert datetime.fromisoformat(line.pop("ts")).utcoffset() == timedelta(0)
    return lines


def test_logfmt() -> None:
    (line,) = logged('logger.info("published", rows=3, reason="two words")')
    assert re.fullmatch(
        r'ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z level=info node=order-1 event=published rows=3 reason="two words"',
        line,
    )


def test_json() -> None:
    (line,) = parsed('logger.info("published", rows=3, reason="two words")')
    assert line == {"level": "info", "node": "order-1", "event": "published", "rows": 3, "reason": "two words"}


def test_a_librarys_record_has_the_same_shape() -> None:
    (line,) = logged('library.warning("lost %s of %d", "two", 3)')
    assert re.fullmatch(r'ts=\S+Z level=warning node=order-1 event="lost two of 3"', line)
    (found,) = parsed('library.warning("lost %s of %d", "two", 3)')
    assert found == {"level": "warning", "node": "order-1", "event": "lost two of 3"}


@pytest.mark.parametrize("name", ["logger", "library"])
@pytest.mark.parametrize("fmt", ["logfmt", "json"])
def test_an_exception_is_one_line(name: str, fmt: str) -> None:
    program = f'try:\n    1 / 0\nexcept ZeroDivisionError:\n    {name}.exception("broke")\n'
    (line,) = logged(program, fmt=fmt)
    assert "ZeroDivisionError: division by zero" in line
    if fmt == "json":
        found = json.loads(line)
        assert (found["level"], found["event"]) == ("error", "broke")
        assert found["exception"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("fmt", ["logfmt", "json"])
def test_a_value_with_line_breaks_is_one_line(fmt: str) -> None:
    (line,) = logged(r'logger.warning("poll_failed", reason="first\nsecond \"quoted\"")', fmt=fmt)
    assert r"first\nsecond \"quoted\"" in line


def test_what_is_no_text() -> None:
    (line,) = logged(
        'logger.info("asked", lead=True, full=False, node_id=None, left_s=0.5, said=ValueError("a=b"), rest="")'
    )
    assert line.endswith('event=asked lead full=false node_id= left_s=0.5 said="a=b" rest=')
    (found,) = parsed('logger.info("asked", lead=True, node_id=None, said=ValueError("no"))')
    assert (found["lead"], found["node_id"], found["said"]) == (True, None, "ValueError('no')")


def test_a_program_with_logging_of_its_own_gets_the_words_too(caplog: pytest.LogCaptureFixture) -> None:
    log.get("brewctl.test").warning("published", rows=3, reason="two words")
    assert caplog.messages == ['event=published rows=3 reason="two words"']


def test_without_a_node() -> None:
    (line,) = logged('logger.info("started")', node="", fmt="json")
    assert json.loads(line).keys() == {"ts", "level", "event"}


TALK = """
for name in ("brewctl.x", "library", "kafka.conn", "psycopg.pool"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(f"{name}:{level}")
"""


@pytest.mark.parametrize(
    ("verbose", "heard"),
    [
        (False, "x:info x:warning x:error library:warning library:error psycopg.pool:error"),
        (
            True,
            (
                "x:debug x:info x:warning x:error library:info library:warning library:error"
                " kafka.conn:info kafka.conn:warning kafka.conn:error"
                " psycopg.pool:info psycopg.pool:warning psycopg.pool:error"
            ),
        ),
    ],
)
def test_who_is_heard(verbose: bool, heard: str) -> None:
    lines = logged(TALK, verbose=verbose)
    assert [line.rpartition("event=")[2].removeprefix("brewctl.") for line in lines] == heard.split()


def test_configured_twice_each_record_is_still_one_line() -> None:
    again = 'log.configure(node="order-2", as_json=True)\nlibrary.warning("once")'
    (line,) = logged(again)
    assert json.loads(line)["node"] == "order-2"


def test_say_is_a_line_on_stdout_at_once() -> None:
    program = "import os\nfrom brewctl import log\nlog.say('order-1', 'listening')\nos._exit(0)"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    said = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert (said.stdout, said.stderr) == ("[order-1] listening\n", "")


def test_a_role_outlives_its_reader() -> None:
    """`brewctl serve order | head -1`, or a worker whose supervisor was killed."""
    program = "from brewctl import log; log.say('order-1', 'one'); log.say('order-1', 'two')"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


class Lines:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, int]]] = []

    def info(self, event: str, **counts: int) -> None:
        self.lines.append((event, dict(counts)))


def test_a_sum_is_logged_once_a_period_at_most_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    logger = Lines()
    done = log.Sum(logger, "published", every_s=2.0)  # type: ignore[arg-type]
    done.add(rows=3, batches=1)
    assert logger.lines == [("published", {"rows": 3, "batches": 1})], "the first is worth a line at once"
    for _ in range(3):
        now[0] += 0.5
        done.add(rows=10, batches=1, took_ms=7)
        done.tell()
    assert len(logger.lines) == 1
    now[0] += 0.5
    done.tell()
    done.tell()
    assert logger.lines[1:] == [("published", {"rows": 30, "batches": 3, "took_ms": 21})]
    now[0] += 60
    done.tell()
    assert len(logger.lines) == 2, "nothing is no line"
    done.add(rows=1)
    done.add(rows=2)
    assert logger.lines[2:] == [("published", {"rows": 1})]
    done.tell(at_once=True)
    done.tell(at_once=True)
    assert logger.lines[3:] == [("published", {"rows": 2})]


def test_a_line_that_many_calls_give_rise_to_is_said_once_and_counts_the_others() -> None:
    program = """
seldom = log.Seldom(logger, "refused", every_s=3600)
print([seldom.warn(reason=str(number)) for number in range(3)], file=sys.stderr)
seldom._told_at -= 3601
seldom.warn(reason="again")
"""
    first, said, last = logged(program)
    assert said == "[True, False, False]"
    assert "event=refused" in first
    assert "reason=0" in first
    assert "left_out" not in first
    assert "reason=again" in last
    assert "left_out=2" in last
