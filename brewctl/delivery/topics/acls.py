"""The rights in Kafka: a user for each role, with the same names as the roles of PostgreSQL.

Kafka knows no roles: each rule names a user. READ, WRITE, DELETE and ALTER include
DESCRIBE, and ALTER_CONFIGS includes DESCRIBE_CONFIGS.
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
        # One that publishes itself. It asks for both topics as it starts.
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
    """Return the commands that make these rules, for Kafka's own tool."""
    lines = [
        "# A user for each role, for brokers with an authorizer, such as",
        f"# authorizer.class.name={_CLASS}",
        "# Whoever runs this must be one of its super.users; admin.properties says how it connects.",
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
    """Make these rules, and return how many users they are of. Those that are there stay. Raises BrewError."""
    wanted = rules(settings, prefix=prefix)
    with open_admin(settings) as admin:
        admin.allow(wanted)
    return len({rule.user for rule in wanted})


def _word(operation: str) -> str:
    """Write an operation as Kafka's tool does: DescribeConfigs."""
    return "".join(part.capitalize() for part in operation.split("_"))
