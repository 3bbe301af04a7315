"""A verdict is worth what it can find: small changes of the system, each caught by its own check alone.

The quick ones of `make mutations`, which plays them all; and that no check is without one.
"""

from pathlib import Path

import pytest

from brewctl.verify import verify
from tests.conftest import Rig
from tests.mutations.catalogue import CONTROL, MUTATIONS, Mutation
from tests.mutations.changes import CHANGES
from tests.mutations.play import VERDICTS, play

QUICK = [CONTROL, *(mutation for mutation in MUTATIONS if mutation.quick)]


def test_every_check_has_a_mutation_that_it_catches(rig: Rig) -> None:
    checks = {check.name for check in verify(rig.settings).checks}
    assert checks == {mutation.check for mutation in MUTATIONS}
    played = {change for mutation in MUTATIONS for change in mutation.changes}
    assert played | {"acknowledged_unwritten", "cancel_unwritten"} == set(CHANGES)


@pytest.mark.parametrize("mutation", QUICK, ids=lambda mutation: mutation.name)
def test_a_mutation_is_caught_by_its_check_alone(servers: dict[str, str], tmp_path: Path, mutation: Mutation) -> None:
    assert play(mutation, servers, tmp_path) == {mutation.check, *mutation.also} - {""}


@pytest.mark.parametrize("name", VERDICTS)
def test_what_clients_were_told_is_compared_with_what_is_there(
    servers: dict[str, str], tmp_path: Path, name: str
) -> None:
    _, act, field = VERDICTS[name]
    contradicted = act(servers, tmp_path)
    assert {name for name, value in vars(contradicted).items() if value} == {field}
    assert list(contradicted.findings())
