"""What of a shell reaches the sandbox's servers, and which folders they can work in."""

import os
from pathlib import Path

import pytest

from brewctl.errors import UsageError
from brewctl.sandbox import cache, jvm, kafka_node, surroundings

SHELL = (
    *("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "KAFKA_OPTS", "KAFKA_HEAP_OPTS", "JAVA_HOME"),
    *("PGDATA", "PGPORT", "PGHOST", "PGOPTIONS", "PGSSLMODE", "PGSERVICE", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("LANG", "LC_ALL", "LANGUAGE", "TZ", "TMPDIR", "BASH_ENV", "IFS", "https_proxy", "MAKEFLAGS", "PYTHONPATH"),
)


def test_a_server_gets_nothing_of_the_shell_but_where_programs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SHELL:
        monkeypatch.setenv(name, "spoiled")
    assert surroundings.environment() == {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    monkeypatch.setenv("CLASSPATH", "/spoiled")
    assert "spoiled" not in "".join(jvm.environment(["supplies/a.jar", "supplies/b.jar"]).values())


def test_no_file_or_option_of_a_node_repeats_where_the_node_is(tmp_path: Path) -> None:
    """Kafka splits `log.dirs` at commas, properties have escapes, a class path has colons."""
    folder = tmp_path / "ä,b c:\\d"
    store = tmp_path / "é:store"
    store.mkdir()
    kafka_node.configure(folder, 1, [(1, 2)], [(3, 4)])
    kafka_node.supply(folder, store)
    assert (folder / "server.properties").read_text("ascii").splitlines().count("log.dirs=data") == 1
    assert str(tmp_path) not in (folder / "server.properties").read_text("ascii")
    assert str(tmp_path) not in " ".join(kafka_node.command(["java"]))
    (store / "a.jar").write_text("a jar")
    assert (folder / kafka_node.supplied(store, store / "a.jar")).read_text() == "a jar"
    kafka_node.supply(folder, tmp_path)  # the cache has moved
    assert (folder / kafka_node.supplied(tmp_path, store / "a.jar")).read_text() == "a jar"


def test_a_storage_that_was_half_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "bootstrap.checkpoint"
    checkpoint.write_bytes(b"records")
    write = Path.write_text

    def full(path: Path, text: str, *args: str) -> int:
        write(path, text[:5], *args)
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError):  # noqa: PT011 - ours, without words
            kafka_node.format_storage(tmp_path / "1", "cluster", 1, checkpoint)
    kafka_node.format_storage(tmp_path / "1", "cluster", 1, checkpoint)
    assert "cluster.id=cluster" in (tmp_path / "1" / "data" / "meta.properties").read_text()


@pytest.mark.parametrize("name", [b"caf\xe9", b"d" * 951])
def test_a_home_in_which_a_server_cannot_work_is_refused(name: bytes) -> None:
    with pytest.raises(UsageError) as refused:
        surroundings.require_usable(Path(os.fsdecode(b"/" + name)), "BREW_HOME")
    assert refused.value.hint == "set BREW_HOME to another folder"


@pytest.mark.parametrize("name", [b"/caf\xe9", b"/wow!"])
def test_a_cache_in_which_java_finds_nothing_is_refused(name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.fsdecode(name))
    with pytest.raises(UsageError) as refused:
        cache.folder()
    assert refused.value.hint == "set XDG_CACHE_HOME to another folder"
