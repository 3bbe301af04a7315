"""How clients of order-service connect, as the environment says it."""

import pytest

from brewctl import config, security
from brewctl.errors import UsageError
from brewctl.security import OrderSecurity, Secret


@pytest.mark.parametrize(("value", "encrypts"), [("", False), ("0", False), ("no", False), ("1", True), ("TRUE", True)])
def test_tls_with_the_systems_authorities(value: str, encrypts: bool) -> None:
    assert security.order({"order_tls": value}).encrypts is encrypts


def test_a_word_that_is_neither() -> None:
    with pytest.raises(UsageError, match=r"^BREW_ORDER_TLS: 'maybe' is neither 1 nor 0"):
        security.order({"order_tls": "maybe"})


@pytest.mark.parametrize(
    ("given", "lacking"),
    [("BREW_ORDER_CERT_FILE", "BREW_ORDER_KEY_FILE"), ("BREW_ORDER_KEY_FILE", "BREW_ORDER_CERT_FILE")],
)
def test_a_certificate_goes_with_its_key(given: str, lacking: str) -> None:
    with pytest.raises(UsageError, match=f"^{given} is set without {lacking}"):
        config.resolve({}, {given: "file"}, {})


def test_processes_that_are_started_connect_the_same_way() -> None:
    whole = OrderSecurity(True, "ca", "certificate", "key", Secret("BREW_ORDER_TOKEN", file="token"))
    settings = config.resolve({}, config.environment(config.Settings(order_security=whole)), {})
    assert settings.order_security == whole
