"""The exporter's parts: who asks a server, how often, and what of its answers is shown."""

import contextlib
import itertools
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from brewctl.errors import BrewError, UnreachableError
from brewctl.exporter.families import FAMILIES, OUTBOX_OLDEST, QUESTION_UP, UP, Sample
from brewctl.exporter.kafka import _apart
from brewctl.exporter.looking import Looker, standing
from brewctl.exporter.questions import SHARE, Question
from brewctl.lifecycle import beside
from tests.conftest import run

_LATE_S = 30.0


class Server:
    """A server that is asked, and that may be slow, away or without an answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: BrewError | None = None
        self.question: Question | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.looker = Looker("somewhere", self.opened)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Sequence[Question]]:
        if isinstance(self.error, UnreachableError):
            raise self.error
        self.question = Question("somewhere", "age", self.ask)
        yield [Question("somewhere", "ping", self.ping, always=True), self.question]

    def ping(self) -> None:
        if isinstance(self.error, UnreachableError):
            raise self.error

    def ask(self) -> Sequence[Sample]:
        self.asked += 1
        self.answers.wait(_LATE_S)
        if self.error:
            raise self.error
        return [Sample(OUTBOX_OLDEST, float(self.asked))]

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        stop = threading.Event()
        with beside({"looker": lambda: self.looker.run(stop)}, stop):
            try:
                yield
            finally:
                self.answers.set()

    def scrape(self, within_s: float = _LATE_S) -> dict[str, float]:
        look = self.looker.answer(self.looker.ask(), until=time.monotonic() + within_s)
        return {sample.family.name: sample.value for sample in standing("somewhere", look)}

    def next_scrape(self) -> dict[str, float]:
        """What a scrape some time later gets."""
        self.looker._looked_at -= 3600
        if self.question:
            self.question._due = 0.0
        return self.scrape()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with server.looking():
        yield server


def test_scrapes_at_the_same_time_are_one_question(server: Server) -> None:
    server.answers.clear()
    found: list[dict[str, float]] = []
    scrapers = [threading.Thread(target=lambda: found.append(server.scrape())) for _ in range(8)]
    for scraper in scrapers:
        scraper.start()
    server.answers.set()
    for scraper in scrapers:
        scraper.join()
    assert [each[OUTBOX_OLDEST.name] for each in found] == [1.0] * 8
    assert server.asked == 1


def test_a_scrape_right_after_another_asks_nothing(server: Server) -> None:
    assert server.scrape() == server.scrape()
    assert server.asked == 1


def test_a_server_that_is_away_has_no_numbers_and_its_old_ones_are_gone(server: Server) -> None:
    assert server.scrape()[UP.name] == 1
    server.error = UnreachableError("it is gone")
    assert server.next_scrape() == {UP.name: 0}
    server.error = None
    assert server.next_scrape()[UP.name] == 1


def test_what_is_known_for_a_while_yet_is_not_said_of_a_server_that_is_gone(server: Server) -> None:
    assert server.scrape()[UP.name] == 1
    assert server.question
    server.question._due = math.inf  # it was dear
    server.error = UnreachableError("it is gone")
    server.looker._looked_at -= 3600
    assert server.scrape() == {UP.name: 0}
    assert server.asked == 1


def test_a_server_that_says_nothing_does_not_hold_a_scrape_up(server: Server) -> None:
    assert server.scrape()[UP.name] == 1
    server.answers.clear()
    assert server.question
    server.question._due = 0.0
    server.looker._looked_at -= 3600
    assert server.scrape(within_s=0.05) == {UP.name: 0}
    assert server.scrape(within_s=0.05) == {UP.name: 0}
    assert server.asked == 2
    server.answers.set()
    assert server.scrape()[UP.name] == 1


def test_a_question_that_fails_alone_leaves_its_server_up(server: Server) -> None:
    server.error = BrewError("there is no such table")
    found = server.scrape()
    assert (found[UP.name], found[QUESTION_UP.name]) == (1, 0)
    assert OUTBOX_OLDEST.name not in found
    assert server.looker.last.failed == ["there is no such table"]


def test_what_nobody_expected_is_an_absence_too(server: Server) -> None:
    server.error = ValueError("strange")  # type: ignore[assignment]
    assert server.scrape() == {UP.name: 0}
    assert "ValueError strange" in str(server.looker.last.away)
    server.error = None
    assert server.next_scrape()[UP.name] == 1


def test_a_question_is_asked_as_seldom_as_it_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cost_s, asked = [1000.0], 2.0, []

    def ask() -> Sequence[Sample]:
        asked.append(now[0])
        now[0] += cost_s
        return []

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    question = Question("somewhere", "rows", ask)
    for _ in range(1000):
        question.look()
        now[0] += 0.5
    pauses = [later - before for before, later in itertools.pairwise(asked)]
    assert len(asked) > 5
    assert all(pause >= SHARE * cost_s for pause in pauses)


def test_two_groups_before_different_records_of_a_partition_are_read_one_after_the_other() -> None:
    parts = list(_apart({(0, 5), (0, 9), (1, 2), (2, 7)}))
    assert sorted(place for part in parts for place in part.items()) == [(0, 5), (0, 9), (1, 2), (2, 7)]


def test_names_are_in_base_units_and_begin_as_all_of_ours() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("brew_") and not name.endswith("_total") for name in names)


def test_without_the_library_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; sys.argv = ['brewctl', 'metrics', '--once']"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; from brewctl.cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "brewctl: prometheus-client is not installed: pip install 'brewctl[metrics]'\n"


def test_no_other_command_loads_the_library() -> None:
    modules = "brewctl.cli.main, brewctl.roles.order, brewctl.roles.consumer"
    code = f"import sys, {modules}; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        (["--http", "9465"], {}, "--http '9465' is not HOST:PORT"),
        (["--once"], {"BREW_DATABASE_URL": "nonsense://x"}, "BREW_DATABASE_URL is no PostgreSQL URL"),
        (["--once"], {"BREW_KAFKA_BROKERS": "a b"}, "BREW_KAFKA_BROKERS"),
        (["--once", "--downstream", "nothing"], {}, "'nothing' is not MODULE:NAME"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], environment: dict[str, str], line: str, tmp_path: Path) -> None:
    done = run("metrics", *arguments, env={"BREW_HOME": str(tmp_path), **environment})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
