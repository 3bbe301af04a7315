"""Which downstreams there are: those that the settings name, found as MODULE:NAME."""

import functools
import importlib

from brewctl.config import Settings
from brewctl.delivery.downstream import Downstream


def configured(settings: Settings) -> tuple[Downstream, ...]:
    """Return the downstreams that the settings name, in their order. Raises UsageError where one is not there."""
    return tuple(find(name) for name in settings.downstreams)


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
