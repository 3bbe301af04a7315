"""Where an order-service listens, with and without TLS: what is refused before it listens."""

import subprocess
import sys
from pathlib import Path

import pytest

from brewctl.errors import UsageError
from brewctl.roles.listening import Security, is_loopback
from tests.conftest import run

TLS = Security(certificate="server.pem", key="server.key")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]", "::1"])
def test_this_machine_alone_reaches_it(host: str) -> None:
    assert is_loopback(host)
    Security(tokens="tokens").check(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "::", "192.0.2.1", "[2001:db8::1]"])
def test_others_reach_it(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UsageError, match="reached from other machines"):
        Security().check(host)
    with pytest.raises(UsageError, match="tokens and orders in plain text"):
        Security(tokens="tokens").check(host)
    TLS.check(host)
    Security(insecure=True).check(host)
    Security(insecure=True, tokens="tokens").check(host)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Security(certificate="c"), "--tls-cert is given without --tls-key"),
        (Security(key="k"), "--tls-key is given without --tls-cert"),
        (Security(client_ca="ca"), "--tls-client-ca is given without TLS"),
        (Security(certificate="c", key="k", insecure=True), "--insecure and --tls-cert are both given"),
    ],
)
def test_what_does_not_go_together(given: Security, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        given.check("127.0.0.1")


def test_a_worker_is_told_the_same() -> None:
    whole = Security("c", "k", "ca", "tokens")
    assert whole.arguments() == ["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "ca", "--tokens", "tokens"]
    assert Security(insecure=True).arguments() == ["--insecure"]


def test_the_command_refuses_with_what_to_add(tmp_path: Path) -> None:
    done = run("serve", "order", "--host", "0.0.0.0", env={"BREW_HOME": str(tmp_path)})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("brewctl: --host 0.0.0.0 is reached from other machines")
    assert line.endswith("add --tls-cert and --tls-key, or --insecure where the network is trusted")


def test_without_tls_and_tokens_nothing_of_them_is_imported() -> None:
    asked = "import sys, brewctl.roles.order, brewctl.cli.serve, brewctl.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert "brewctl.roles.order.server" in loaded
    unwanted = {
        "brewctl.roles.order.tls",
        "brewctl.roles.order.tokens",
        "brewctl.client.handshake",
        "cryptography",
        "trustme",
    }
    assert not unwanted & set(loaded)
