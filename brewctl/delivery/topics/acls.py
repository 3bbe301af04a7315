"""The rules (ACLs) for Kafka: a user for each role, named as the role in PostgreSQL.

Kafka has no roles: each rule names a user. READ, WRITE, DELETE and ALTER include DESCRIBE, and ALTER_CONFIGS includes
DESCRIBE_CONFIGS.
"""

import shlex
from collections.abc import Sequence

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import Rule, open_admin

_CLASS = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"


def rules(settings: Settings, *, prefix: str) -> list[Rule]:
    """Return the rules for the configured topic, its dead-letter topic and the configured downstreams' groups."""
    topic, letters = ("topic", settings.topic), ("topic", settings.dead_letter_topic)
    groups = [("group", name) for name in registry.kafka_groups(settings)]

    def given(role: str, operations: Sequence[str], *resources: tuple[str, str]) -> list[Rule]:
        return [Rule(prefix + role, tuple(operations), kind, name) for kind, name in resources]

    found = [
        *given("owner", ["CREATE", "DELETE", "READ", "ALTER_CONFIGS"], topic),
        *given("owner", ["CREATE", "DELETE"], letters),
        *given("owner", ["DELETE"], *groups),
        # An order-service that publishes itself also looks for both topics when it starts.
        *given("order", ["WRITE"], topic),
        *given("order", ["DESCRIBE"], letters),
        *given("publisher", ["WRITE"], topic),
    ]
    for downstream, group in zip(registry.configured(settings), groups, strict=True):
        found += given(downstream.group, ["READ"], topic, group)
        found += given(downstream.group, ["WRITE"], letters)
    return [
        *found,
        *given("reader", ["READ", "DESCRIBE_CONFIGS"], topic, letters),
        *given("reader", ["DESCRIBE"], *groups),
        *given("operator", ["READ", "WRITE"], topic),
        *given("operator", ["READ"], letters),
        *given("operator", ["READ"], *groups),
    ]


def script(settings: Settings, *, prefix: str) -> str:
    """Return the commands of Kafka's own tool that make these rules."""
    lines = [
        "# A user for each role, for brokers with an authorizer, such as",
        f"# authorizer.class.name={_CLASS}",
        "# Run it as one of its super.users; admin.properties says how to connect.",
    ]
    for rule in rules(settings, prefix=prefix):
        operations = " ".join(f"--operation {_word(operation)}" for operation in rule.operations)
        lines.append(
            f"kafka-acls.sh --bootstrap-server {shlex.quote(','.join(settings.brokers))} "
            f"--command-config admin.properties --add --allow-principal {shlex.quote(f'User:{rule.user}')} "
            f"{operations} --{rule.kind} {shlex.quote(rule.name)}"
        )
    return "\n".join(lines)


def apply(settings: Settings, *, prefix: str) -> int:
    """Add these rules to those that exist; return for how many users. Raises BrewError."""
    wanted = rules(settings, prefix=prefix)
    with open_admin(settings) as admin:
        admin.allow(wanted)
    return len({rule.user for rule in wanted})


def _word(operation: str) -> str:
    """Return an operation as Kafka's tool writes it, such as DescribeConfigs."""
    return "".join(part.capitalize() for part in operation.split("_"))
