"""The library's options for TLS and passwords. Imported only if Kafka's protocol is not PLAINTEXT."""

from typing import Any

from brewctl.delivery.broker import certificates
from brewctl.security import KafkaSecurity


def options(security: KafkaSecurity) -> dict[str, Any]:
    """Return the options of a client, reading the files now. Raises UsageError for a file that can't be used."""
    chosen = {"security.protocol": security.protocol.value}
    if security.protocol.encrypts:
        certificates.context(security)  # raises UsageError with the reason, as with the other client
        files = {
            "ssl.ca.location": security.ca,
            "ssl.certificate.location": security.certificate,
            "ssl.key.location": security.key or security.certificate,
            "ssl.key.password": security.key_password.read(),
        }
        chosen |= {name: value for name, value in files.items() if value}
    if security.protocol.authenticates:
        chosen |= {
            "sasl.mechanism": security.mechanism.value,
            "sasl.username": security.username,
            "sasl.password": security.password.read(),
        }
    return chosen
