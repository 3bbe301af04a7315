"""The file of the tokens: what it may hold, what is refused, and when a change of it counts."""

import hashlib
from pathlib import Path

import pytest

from brewctl.certificates import Named
from brewctl.errors import UsageError
from brewctl.roles.order.tokens import Tokens, parse
from tests.certificates import put
from tests.conftest import run

BREW, ACME, NEW = ("planted-" + letter * 32 for letter in "bac")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    put(path, f"# whose each is\nbrew {BREW}\n\nacme {ACME}  \n", mode=0o600)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        parse(Named("--tokens", str(path)))
    assert "planted" not in str(refused.value)
    return refused.value.message


def test_whose_each_is(path: Path) -> None:
    tokens = Tokens(str(path))
    assert [tokens.tenant_of(token) for token in (BREW, ACME, NEW, "", BREW[:-1])] == ["brew", "acme", None, None, None]


def test_a_digest_does_for_the_token(path: Path) -> None:
    put(path, f"brew sha256:{hashlib.sha256(BREW.encode()).hexdigest()}\n")
    assert Tokens(str(path)).tenant_of(BREW) == "brew"


def test_the_tokens_themselves_are_not_kept(path: Path) -> None:
    assert "planted" not in repr(vars(Tokens(str(path))))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("# nobody\n", "has no line TENANT TOKEN"),
        ("brew\n", "line 1 is not TENANT TOKEN"),
        (f"\nbrew {BREW} {BREW}\n", "line 2 is not TENANT TOKEN"),
        (f"brew/x {BREW}\n", "line 1 is not TENANT TOKEN"),
        ("brew planted-short\n", "line 1 has no token: 16 or more"),
        (f"brew {BREW}é\n", "line 1 has no token: 16 or more"),
        (f"brew {BREW}\nacme {BREW}\n", "line 2 has the token of another tenant"),
        (f"brew {BREW}\nacme {ACME[:20]}", "does not end with a newline: it may not be written to its end"),
    ],
)
def test_what_is_refused(path: Path, content: str, said: str) -> None:
    put(path, content)
    assert said in refusal(path)


def test_bytes_that_are_no_text(path: Path) -> None:
    put(path, b"brew \xff\xff\n")
    assert "is no UTF-8 text" in refusal(path)


def test_a_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"--tokens: {tmp_path} can't be read (is a directory)"


def test_a_change_counts_once_it_rests(path: Path) -> None:
    tokens = Tokens(str(path))
    put(path, f"brew {NEW}\n")
    tokens.look()
    assert tokens.tenant_of(NEW) is None
    tokens.look()
    assert tokens.tenant_of(NEW) == "brew"
    assert tokens.tenant_of(BREW) is None


@pytest.mark.parametrize("content", [None, "", "brew", f"brew {NEW}"])
def test_a_file_that_can_not_be_used_changes_nothing(path: Path, content: str | None) -> None:
    tokens = Tokens(str(path))
    if content is None:
        path.unlink()
    else:
        put(path, content)
    for _ in range(3):
        tokens.look()
    assert tokens.tenant_of(BREW) == "brew"
    assert tokens.tenant_of(NEW) is None
    put(path, f"brew {NEW}\n")
    for _ in range(2):
        tokens.look()
    assert tokens.tenant_of(NEW) == "brew"


def test_a_server_with_such_a_file_does_not_start(path: Path, tmp_path: Path) -> None:
    put(path, "brew planted\n")
    done = run("serve", "order", "--tokens", str(path), env={"BREW_HOME": str(tmp_path)})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"brewctl: --tokens: {path} line 1 has no token")
    assert "planted" not in done.stdout + line
