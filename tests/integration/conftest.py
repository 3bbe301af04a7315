"""One order node for all tests that only call it, and the parts of a node that others drive by hand."""

import logging
from collections.abc import Iterator, Sequence

import pytest

from brewctl.delivery import database
from brewctl.delivery.broker import Producer, Record
from brewctl.delivery.database import Pool
from brewctl.delivery.inbox.failures import FailingError
from brewctl.delivery.inbox.inbox import Inbox
from tests.conftest import Rig, open_rig
from tests.integration import lanes_tools
from tests.integration.grpc_tools import Service, dialled


@pytest.fixture(scope="session")
def service(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An order node on a database of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("grpc")) as rig, dialled(rig, rig.serve()[1]) as service:
        yield service


@pytest.fixture(scope="session")
def laned(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A database for all tests of lanes: each has a group of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("lanes")) as rig:
        rig.connection.execute(lanes_tools.TABLE)
        yield rig


@pytest.fixture
def pool(rig: Rig) -> Iterator[Pool]:
    with database.open_pool(rig.settings, name="test", size=4) as pool:
        yield pool


@pytest.fixture
def producer(rig: Rig) -> Iterator[Producer]:
    producer = Producer(rig.settings, node="test")
    yield producer
    producer.abandon()


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a handler comes out of the first try, as it was raised."""

    def handle(inbox: Inbox, records: Sequence[Record]) -> None:
        try:
            inbox.apply(inbox.read(records))
        except FailingError as error:
            raise error.__cause__ or error from None

    monkeypatch.setattr(Inbox, "handle", handle)


class _Printed(logging.Handler):
    """Prints each line of brewctl's log, to be read by capfd: parts that run in the test's process have no stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"[{record.levelname.lower()}] {record.getMessage()}")


@pytest.fixture(autouse=True)
def printed_log() -> Iterator[None]:
    """Print what the program logs while a test runs parts of it."""
    logger, handler = logging.getLogger("brewctl"), _Printed()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield
    logger.removeHandler(handler)
    logger.setLevel(before)
