"""Certificates and keys in files: what is refused, with the file and the reason, before anybody uses it."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from brewctl import certificates
from brewctl.certificates import Named
from brewctl.errors import UsageError
from tests.certificates import Authority, Files
from tests.conftest import run


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


@pytest.fixture
def files(authority: Authority) -> Files:
    return authority.issue()


def named(files: Files) -> tuple[Named, Named]:
    return Named("--tls-cert", str(files.certificate)), Named("--tls-key", str(files.key))


def refusal(files: Files) -> str:
    with pytest.raises(UsageError) as refused:
        certificates.pair(*named(files))
    return str(refused.value)


def test_a_certificate_and_its_key(files: Files) -> None:
    pair = certificates.pair(*named(files))
    assert pair == (files.certificate.read_bytes(), files.key.read_bytes())
    life = certificates.lifetime(*named(files), pair.chain)
    assert life.begins is not None
    assert life.ends is not None
    assert not life.expired
    assert timedelta(seconds=life.ends - life.begins) == timedelta(days=31)


@pytest.mark.parametrize(
    ("age", "left", "expired", "too_early"),
    [(timedelta(3), timedelta(-1), True, False), (timedelta(-1), timedelta(2), False, True)],
)
def test_one_that_is_not_valid_now(
    authority: Authority, age: timedelta, left: timedelta, expired: bool, too_early: bool
) -> None:
    files = authority.issue(age=age, left=left)
    life = certificates.lifetime(*named(files), certificates.pair(*named(files)).chain)
    assert (life.expired, life.too_early) == (expired, too_early)


def test_one_that_is_missing(files: Files) -> None:
    files.key.unlink()
    assert refusal(files) == f"--tls-key: {files.key} can't be read (no such file or directory)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_one_that_may_not_be_read(files: Files) -> None:
    files.key.chmod(0)
    assert refusal(files) == f"--tls-key: {files.key} can't be read (permission denied)"


def test_an_empty_one(files: Files) -> None:
    files.certificate.write_text("\n")
    assert refusal(files) == f"--tls-cert: {files.certificate} is empty"


def test_a_directory(files: Files, tmp_path: Path) -> None:
    assert refusal(Files(tmp_path, files.key)) == f"--tls-cert: {tmp_path} can't be read (is a directory)"


def test_a_pipe_is_not_waited_for(files: Files, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(Files(files.certificate, tmp_path / "pipe"))


def test_files_that_are_swapped(files: Files) -> None:
    assert "holds no certificate in PEM" in refusal(Files(files.key, files.certificate))


@pytest.mark.parametrize("kind", list(trustme.KeyType))
def test_a_key_of_another_certificate(files: Files, tmp_path: Path, kind: trustme.KeyType) -> None:
    other = tmp_path / "other.key"
    other.write_bytes(trustme.CA().issue_cert("localhost", key_type=kind).private_key_pem.bytes())
    assert refusal(Files(files.certificate, other)) == (
        f"--tls-key: {other} is not the key of the certificate in {files.certificate}"
    )


def test_a_key_with_a_password(files: Files) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"planted")
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    assert f"--tls-key: {files.key} has a password" in refusal(files)
    assert "openssl pkey -in" in refusal(files)


@pytest.mark.parametrize("lost", [1, 20, 40, 100])
def test_files_that_are_not_written_to_their_end(files: Files, lost: int) -> None:
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole.rstrip()[:-lost])
        assert "not written to its end" in refusal(files)
        path.write_bytes(whole)
    assert certificates.pair(*named(files))


@pytest.mark.parametrize("content", ["", "garbage\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_authorities_that_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"^BREW_ORDER_CA_FILE: {path} (is empty|holds)"):
        certificates.authorities(Named("BREW_ORDER_CA_FILE", str(path)))


def test_a_change_of_any_file_is_seen(files: Files) -> None:
    paths = [str(path) for path in files]
    before = certificates.stamp(*paths)
    assert certificates.stamp(*paths) == before
    new = files.key.with_suffix(".new")
    new.write_bytes(files.key.read_bytes())
    new.replace(files.key)
    assert certificates.stamp(*paths) != before


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_with_such_files_does_not_start(files: Files, tmp_path: Path, workers: str) -> None:
    files.key.write_text("")
    done = run("serve", "order", "--port", "0", "--workers", workers, *files.options, env={"BREW_HOME": str(tmp_path)})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line == f"brewctl: --tls-key: {files.key} is empty"


def test_the_variables_name_files_too(files: Files, tmp_path: Path) -> None:
    named = {"BREW_SERVE_TLS_CERT_FILE": str(files.certificate), "BREW_SERVE_TLS_KEY_FILE": str(tmp_path / "none")}
    done = run("serve", "order", env={"BREW_HOME": str(tmp_path), **named})
    assert done.returncode == 2
    assert done.stderr == f"brewctl: --tls-key: {tmp_path / 'none'} can't be read (no such file or directory)\n"
