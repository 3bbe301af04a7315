"""The settings of `--channel webhook`: what is no URL of a receiver, and what is no secret."""

import base64
from pathlib import Path

import pytest

from brewctl.errors import UsageError
from brewctl.roles.webhook import receivers

SECRET = base64.b64encode(b"a" * 32).decode()
URL = "https://shop.example/hooks/T0K3N"


def read(**named: str) -> receivers.Receiver:
    return receivers.from_environment({"BREW_WEBHOOK_URL": URL, "BREW_WEBHOOK_SECRET": SECRET, **named})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "no URL is given"),
        ("  ", "no URL is given"),
        ("shop.example/hooks", "of 18 characters, is no URL"),
        ("https://", "is no URL"),
        ("https:///hooks", "is no URL"),
        ("ftp://shop.example/hooks", "is no URL"),
        ("file:///etc/passwd", "is no URL"),
        ("https://shop.example:99999/", "is no URL"),
        ("https://[1:2/", "is no URL"),
        ("https://shop.example/\x00", "is no URL"),
        ("https://shop.example/" + "x" * 3000, "is no URL"),
        ("https://user:pass@shop.example/", "must not hold a user or a password"),
        ("https://user@shop.example/", "must not hold a user or a password"),
        ("https://shop.example/#part", "fragment"),
        ("http://shop.example/hooks", "http://shop.example: without TLS everybody on the way reads"),
        ("http://192.0.2.1:8080/hooks", "http://192.0.2.1:8080: without TLS"),
        ("http://127.0.0.1.shop.example/", "without TLS"),
    ],
)
def test_what_is_no_url_of_a_receiver(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read(BREW_WEBHOOK_URL=url)
    assert "pass@" not in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(
    "url", [URL, "http://localhost:8080/", "http://127.0.0.2/x", "http://[::1]:8080/", "https://1.2.3.4"]
)
def test_what_is_one(url: str) -> None:
    assert str(read(BREW_WEBHOOK_URL=url).url).startswith(url)


def test_plain_http_where_it_is_wanted() -> None:
    assert read(BREW_WEBHOOK_URL="http://receiver.shop.svc/", BREW_WEBHOOK_PLAIN_HTTP="1").url.scheme == "http"


def test_a_receiver_is_named_without_its_path() -> None:
    assert read().name == "https://shop.example"
    assert read(BREW_WEBHOOK_URL="http://[::1]:8080/x").name == "http://[::1]:8080"


def test_the_url_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL + "\n")
    assert read(BREW_WEBHOOK_URL="", BREW_WEBHOOK_URL_FILE=str(tmp_path / "url")).name == "https://shop.example"


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("", "BREW_WEBHOOK_SECRET is not set"),
        ("hunter2", "the base64 of 24 to 64 bytes"),
        ("not base64 at all!", "the base64 of 24 to 64 bytes"),
        (base64.b64encode(b"short").decode(), "the base64 of 24 to 64 bytes"),
        (base64.b64encode(b"x" * 65).decode(), "the base64 of 24 to 64 bytes"),
        (f"{SECRET} hunter2", "the base64 of 24 to 64 bytes"),
        (" ", "is empty"),
    ],
)
def test_a_secret_that_is_none(secret: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read(BREW_WEBHOOK_SECRET=secret)
    assert "openssl rand -base64 32" in error.value.hint
    assert "hunter2" not in str(error.value)


def test_a_secret_in_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"BREW_WEBHOOK_SECRET_FILE: .* can't be read"):
        read(BREW_WEBHOOK_SECRET="", BREW_WEBHOOK_SECRET_FILE=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="are both set"):
        read(BREW_WEBHOOK_SECRET_FILE=str(tmp_path / "none"))


def test_unsigned_no_secret_is_needed() -> None:
    assert not read(BREW_WEBHOOK_SECRET="", BREW_WEBHOOK_UNSIGNED="1").signed
    with pytest.raises(UsageError, match="BREW_WEBHOOK_UNSIGNED: 'perhaps' is neither 1 nor 0"):
        read(BREW_WEBHOOK_UNSIGNED="perhaps")


@pytest.mark.parametrize("text", ["0", "-1", "61", "nan", "inf", "soon"])
def test_a_timeout_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="BREW_WEBHOOK_TIMEOUT"):
        read(BREW_WEBHOOK_TIMEOUT=text)


def test_no_secret_is_shown() -> None:
    assert SECRET not in repr(read())
    assert "T0K3N" not in repr(read())
