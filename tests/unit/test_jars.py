"""Kafka's jars: a lock of good lines, and no byte that it does not vouch for."""

import hashlib
import re
from pathlib import Path

import jgo.constants
import pytest

from brewctl.errors import BrewError
from brewctl.sandbox import jars, maven

GOOD = b"a good jar"
COORDINATE = "org.example:thing:1.0"


def ignore(_done: int, _total: int, _what: str) -> None:
    """Nobody looks at the progress."""


class Mirror:
    """Stands in for the network: writes the same bytes into the place of every jar."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[str] = []

    def download(self, folder: Path, coordinate: str) -> None:
        self.asked.append(coordinate)
        jar = jars._path(folder, coordinate)
        jar.parent.mkdir(parents=True, exist_ok=True)
        jar.write_bytes(self.content)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A lock of one jar, and a network that has it."""
    mirror = Mirror(GOOD)
    monkeypatch.setattr(jars, "_lock", lambda: {COORDINATE: hashlib.sha256(GOOD).hexdigest()})
    monkeypatch.setattr(maven, "download", mirror.download)
    return mirror


def test_the_lock_has_46_good_lines() -> None:
    text = Path(jars.__file__).with_name("jars.lock").read_text("utf-8")
    lines = text.splitlines()
    assert len(lines) == 46
    assert all(re.fullmatch(r"[\w.-]+:[\w.-]+:[\w.-]+ [0-9a-f]{64}", line) for line in lines)
    assert lines == sorted(lines)
    assert len({line.split(":")[1] for line in lines}) == 46, "a library is there in two versions"
    assert len(jars._lock()) == 46


@pytest.mark.parametrize("endpoint", jars.ENDPOINTS)
def test_the_lock_has_what_was_asked_for(endpoint: str) -> None:
    assert endpoint.removesuffix("!") in jars._lock()


def test_without_a_network_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(jgo.constants, "MAVEN_CENTRAL_URL", "http://127.0.0.1:9")
    with pytest.raises(BrewError, match=r"^can't download \S+ from Maven Central ") as refused:
        jars.fetch(tmp_path, ignore)
    assert "\n" not in str(refused.value)
    assert refused.value.hint


def test_what_is_missing_is_downloaded_once(tmp_path: Path, mirror: Mirror) -> None:
    seen: list[tuple[int, int]] = []
    found = jars.fetch(tmp_path, lambda done, total, _what: seen.append((done, total)))
    assert found == [tmp_path / "org" / "example" / "thing" / "1.0" / "thing-1.0.jar"]
    assert found[0].read_bytes() == GOOD
    assert seen == [(0, 1)]
    assert jars.fetch(tmp_path, lambda done, total, _what: seen.append((done, total))) == found
    assert mirror.asked == [COORDINATE]
    assert len(seen) == 1


def test_what_is_there_is_told_without_a_download(tmp_path: Path, mirror: Mirror) -> None:
    assert jars.present(tmp_path) is None
    (jar,) = jars.fetch(tmp_path, ignore)
    assert jars.present(tmp_path) == [jar]
    jar.write_bytes(GOOD[:-1])
    assert jars.present(tmp_path) is None
    assert mirror.asked == [COORDINATE]


@pytest.mark.parametrize("content", [b"", b"a good ja", b"a good jar!", b"evil"])
def test_a_damaged_jar_in_the_folder_is_not_trusted(tmp_path: Path, mirror: Mirror, content: bytes) -> None:
    (jar,) = jars.fetch(tmp_path, ignore)
    jar.write_bytes(content)
    assert jars.fetch(tmp_path, ignore) == [jar]
    assert jar.read_bytes() == GOOD
    assert mirror.asked == [COORDINATE, COORDINATE]


def test_a_damaged_download_is_refused_and_not_kept(tmp_path: Path, mirror: Mirror) -> None:
    mirror.content = b"evil"
    with pytest.raises(BrewError, match=f"^the download of {COORDINATE} is not the file that was published: try again"):
        jars.fetch(tmp_path, ignore)
    assert not jars._path(tmp_path, COORDINATE).exists()
    mirror.content = GOOD
    assert jars.fetch(tmp_path, ignore)[0].read_bytes() == GOOD
