"""One order node for all tests that only call it."""

from collections.abc import Iterator

import pytest

from tests.conftest import open_rig
from tests.integration.grpc_tools import Service, dialled


@pytest.fixture(scope="session")
def service(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An order node on a database of its own."""
    with open_rig(servers, tmp_path_factory.mktemp("grpc")) as rig, dialled(rig, rig.serve()[1]) as service:
        yield service
