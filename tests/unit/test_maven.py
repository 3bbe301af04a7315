"""A download of a jar, through whatever the user's variables name: real servers, over HTTP and TLS."""

import functools
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import maven

COORDINATE = "org.example:thing:1.0"
PLACE = Path("org/example/thing/1.0/thing-1.0.jar")
NOTHING_LISTENS = "http://127.0.0.1:9"
CENTRAL = urlsplit(maven.repository({})).hostname
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test names what it is about."""
    for name in (*PROXIES, *(name.upper() for name in PROXIES), *CERTIFICATES):
        # Set first: what the code under test sets is undone, too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A repository that has one jar."""
    jar = tmp_path / "mirror" / "maven" / PLACE
    jar.parent.mkdir(parents=True)
    jar.write_bytes(b"a jar")
    handler = functools.partial(Quiet, directory=str(tmp_path / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path, mirror: http.server.ThreadingHTTPServer) -> Path:
    """Let the mirror speak TLS, with a certificate of an authority that nobody knows; return that one's."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mirror"]
    asked += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(asked, capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    mirror.socket = context.wrap_socket(mirror.socket, server_side=True)
    return certificate


def url(server: http.server.ThreadingHTTPServer, scheme: str = "http") -> str:
    return f"{scheme}://reader:secret@127.0.0.1:{server.server_port}/maven/"


def refused(folder: Path) -> BrewError:
    """Fail to download, in one line that has no secret."""
    with pytest.raises(BrewError) as refused:
        maven.download(folder, COORDINATE)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
    return refused.value


def test_a_mirror_is_asked_instead_of_maven_central(
    tmp_path: Path, mirror: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", url(mirror))
    maven.download(tmp_path / "jars", COORDINATE)
    assert (tmp_path / "jars" / PLACE).read_bytes() == b"a jar"


@pytest.mark.parametrize("named", ["maven.example", "ftp://reader:secret@maven.example", "https://", "http://a:b:c/x"])
def test_a_mirror_that_is_no_url_is_misuse(named: str) -> None:
    with pytest.raises(UsageError, match=r"^BREW_MAVEN_REPOSITORY is no http or https URL") as refused:
        maven.repository({"BREW_MAVEN_REPOSITORY": named})
    assert "secret" not in str(refused.value)


def test_a_mirror_that_lacks_a_jar_is_named(
    tmp_path: Path, mirror: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", f"{url(mirror)}elsewhere")
    error = refused(tmp_path)
    assert f"127.0.0.1:{mirror.server_port}, which BREW_MAVEN_REPOSITORY names: it is not there" in error.message


def test_a_mirror_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", NOTHING_LISTENS)
    assert refused(tmp_path).hint == "mend BREW_MAVEN_REPOSITORY, or unset it"


@pytest.mark.parametrize(
    ("name", "proxy", "mended_by"),
    [
        ("https_proxy", NOTHING_LISTENS, f"no_proxy={CENTRAL}"),
        ("ALL_PROXY", NOTHING_LISTENS, f"no_proxy={CENTRAL}"),
        ("HTTPS_PROXY", "socks5://127.0.0.1:9", "pysocks"),
    ],
)
def test_a_proxy_that_lets_nothing_through_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str, mended_by: str
) -> None:
    monkeypatch.setenv(name, proxy)
    error = refused(tmp_path)
    assert f"the proxy in {name} " in error.message
    assert mended_by in error.hint


def test_a_certificate_that_is_not_trusted_is_named_and_trusted_once_ssl_cert_file_has_it(
    tmp_path: Path, mirror: http.server.ThreadingHTTPServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", url(mirror, "https"))
    error = refused(tmp_path)
    assert "certificate is not trusted" in error.message
    assert "set SSL_CERT_FILE to a file" in error.hint
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    maven.download(tmp_path / "jars", COORDINATE)
    assert (tmp_path / "jars" / PLACE).read_bytes() == b"a jar"


def test_a_file_of_certificates_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", "https://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    error = refused(tmp_path)
    assert f"REQUESTS_CA_BUNDLE names {tmp_path / 'gone.pem'}, which is not there" in error.message
    assert error.hint == "unset REQUESTS_CA_BUNDLE, or mend it"


def test_a_disk_without_room_is_named(
    tmp_path: Path, mirror: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREW_MAVEN_REPOSITORY", url(mirror))
    (tmp_path / "jars").write_text("a file, where a folder is wanted")
    error = refused(tmp_path / "jars")
    assert "can't be written" in error.message
    assert "XDG_CACHE_HOME" in error.hint
