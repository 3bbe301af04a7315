"""The sandbox's extra: what is said where a part of it is not installed."""

from pathlib import Path

import pytest

from brewctl.errors import BrewError
from brewctl.lab.play.servers import Servers
from brewctl.sandbox import parts

SAYS = r"^the sandbox's parts are not installed \(no-such-java missing\): run `pip install 'brewctl\[sandbox\]'`"


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_PARTS", ("pytest", "no-such-java"))
    monkeypatch.setattr(parts, "_JAVA", "no-such-java")


def test_a_part_that_is_not_installed_is_named() -> None:
    assert [part for part, version in parts.versions().items() if not version] == ["no-such-java"]
    with pytest.raises(BrewError, match=SAYS):
        parts.require()
    parts.require(java="/usr/bin/java")


def test_a_sandbox_without_its_parts_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(BrewError, match=SAYS):
        Servers(tmp_path / "home").restore()
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["lock"]
