"""The server's certificate and its files: when a new pair counts, and when what is wrong with one is said."""

from datetime import timedelta
from pathlib import Path

import pytest

from brewctl.certificates import Lifetime, expires_soon
from brewctl.roles.listening import Security
from brewctl.roles.order.tls import Certificates, _state
from tests.certificates import Authority, Files, put
from tests.logged import captured


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


@pytest.fixture
def files(authority: Authority) -> Files:
    return authority.issue()


def served(files: Files) -> Certificates:
    return Certificates(Security(str(files.certificate), str(files.key)))


def events_of_a_look(certificates: Certificates) -> list[str]:
    with captured() as lines:
        certificates.look()
    return [line.event for line in lines]


def test_nothing_is_read_again_without_a_change(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = served(files)
    monkeypatch.setattr(certificates, "_read", lambda: pytest.fail("read again"))
    assert events_of_a_look(certificates) == []
    assert certificates._fetch() is None


def test_a_pair_is_replaced_one_file_after_the_other_without_a_warning(authority: Authority, files: Files) -> None:
    certificates, new = served(files), authority.issue("new")
    put(files.key, new.key.read_bytes(), mode=0o600)
    assert certificates._fetch() is None
    assert events_of_a_look(certificates) == []
    put(files.certificate, new.certificate.read_bytes())
    assert events_of_a_look(certificates) == ["certificate_replaced"]
    assert certificates._fetch() is not None
    assert certificates._fetch() is None


def test_a_connection_gets_it_before_the_next_look(authority: Authority, files: Files) -> None:
    certificates, new = served(files), authority.issue("new")
    put(files.key, new.key.read_bytes(), mode=0o600)
    put(files.certificate, new.certificate.read_bytes())
    assert certificates._fetch() is not None


def test_what_stays_wrong_is_said_once(authority: Authority, files: Files) -> None:
    certificates = served(files)
    put(files.key, authority.issue("new").key.read_bytes(), mode=0o600)
    assert [events_of_a_look(certificates) for _ in range(4)] == [[], ["certificate_unusable"], [], []]


@pytest.mark.parametrize(
    ("age", "left", "event"),
    [
        (timedelta(60), timedelta(30), None),
        (timedelta(60), timedelta(6), "certificate_expires"),
        (timedelta(hours=20), timedelta(hours=4), None),
        (timedelta(hours=23), timedelta(hours=1), "certificate_expires"),
        (timedelta(2), timedelta(-1), "certificate_expired"),
        (timedelta(-1), timedelta(2), "certificate_not_valid_yet"),
    ],
)
def test_its_time_is_said_once(authority: Authority, age: timedelta, left: timedelta, event: str | None) -> None:
    certificates = served(authority.issue(age=age, left=left))
    assert events_of_a_look(certificates) == ([event] if event else [])
    assert events_of_a_look(certificates) == []


def test_the_moment_that_it_expires() -> None:
    life = Lifetime(0.0, 100.0)
    assert [_state(life, now)[0] for now in (50, 89, 91, 100, 101)] == [
        *("", ""),
        *("certificate_expires", "certificate_expired", "certificate_expired"),
    ]
    assert expires_soon(0, 100, 91)
