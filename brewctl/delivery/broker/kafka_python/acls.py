"""Access rules (ACLs), created by the library's administration client."""

from collections.abc import Sequence
from typing import NamedTuple

from kafka import errors
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from brewctl.delivery.broker.kafka_python.admin_client import AdminClient
from brewctl.errors import BrewError


class Rule(NamedTuple):
    """The operations that a user may do on a topic or a group from any host, by Kafka's names for them."""

    user: str
    operations: tuple[str, ...]
    kind: str  # topic or group
    name: str


def allow(client: AdminClient, rules: Sequence[Rule]) -> None:
    """Add rules to those that exist. Raises BrewError if the brokers have no authorizer; KafkaError."""
    wanted = [
        ACL(
            f"User:{rule.user}",
            "*",
            ACLOperation[operation],
            ACLPermissionType.ALLOW,
            ResourcePattern(ResourceType[rule.kind.upper()], rule.name),
        )
        for rule in rules
        for operation in rule.operations
    ]
    for _, error in client.create_acls(wanted)["failed"]:
        if error is errors.SecurityDisabledError:
            raise BrewError(
                "kafka checks no rights: its brokers have no authorizer",
                hint="set authorizer.class.name and super.users in theirs; `brewctl topic grants` names one",
            )
        raise error()
