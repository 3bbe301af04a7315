"""Which downstreams there are: those that the settings name, found as MODULE:NAME."""

import functools
import importlib

from brewctl import config
from brewctl.config import Settings
from brewctl.delivery.downstream import Downstream
from brewctl.errors import UsageError


def configured(settings: Settings) -> tuple[Downstream, ...]:
    """Return the downstreams that the settings name, in their order.

    Raises UsageError where one is not there, or where two have the same group.
    """
    by_group: dict[str, str] = {}
    found = []
    for name in settings.downstreams:
        downstream = find(name)
        if other := by_group.get(downstream.group):
            raise UsageError(
                f"downstreams {other} and {name} have the same group {downstream.group}",
                hint="give one of them another group: they would take each other's events",
            )
        by_group[downstream.group] = name
        found.append(downstream)
    return tuple(found)


def further(settings: Settings) -> tuple[Downstream, ...]:
    """Return the configured ones beside the story's own. Imports nothing where there are none."""
    own = set(config.DEFAULT_DOWNSTREAMS)
    return tuple(find(name) for name in settings.downstreams if name not in own)


def kafka_groups(settings: Settings) -> tuple[str, ...]:
    """Return what Kafka calls the groups of the configured downstreams."""
    return tuple(kafka_group(settings, downstream) for downstream in configured(settings))


def kafka_name(settings: Settings, group: str) -> str:
    """Return what Kafka calls a group that a user names: of a configured downstream without the prefix, too."""
    own = {downstream.group for downstream in configured(settings)} if settings.group_prefix else ()
    return settings.group_prefix + group if group in own else group


def started_as(settings: Settings, group: str) -> str:
    """Return what `brewctl start` is told to run a node of a group, by the group's name in Kafka."""
    for name in settings.downstreams:
        if kafka_group(settings, find(name)) == group:
            return config.short_name(name)
    return group


def kafka_group(settings: Settings, downstream: Downstream) -> str:
    """Return what Kafka calls a downstream's consumer group."""
    return settings.group_prefix + downstream.group


@functools.cache
def find(name: str) -> Downstream:
    """Return the downstream that MODULE:NAME is. Raises UsageError where it is none."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, Downstream)
    return found
