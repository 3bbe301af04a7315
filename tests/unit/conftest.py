"""Settings of the property tests, and `brewctl` without its start."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import conftest
from tests.warm import Warm

settings.register_profile("brew", deadline=None)  # a loaded machine is slow, and not wrong
settings.load_profile("brew")


@pytest.fixture(scope="package", autouse=True)
def warm(clean_environment: None) -> Iterator[None]:  # noqa: ARG001 - its server has that environment
    """`run` forks a process that has imported `brewctl`. The other tests run the installed binary."""
    server = Warm()
    conftest.warmed.append(server)
    yield
    conftest.warmed.remove(server)
    server.close()
