"""The topic, its dead-letter topic and the groups that read it: made, and made anew."""

from collections.abc import Callable

from brewctl.config import Settings
from brewctl.delivery.broker import REPLICATION_FACTOR, Admin, open_admin
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until

GROUPS = ("inventory", "notifications")
_WAIT_S = 60.0


def create(settings: Settings, *, recreate: bool = False) -> list[str]:
    """Create both topics where they are missing, and wait until every partition has a leader.

    `recreate` first deletes both with the groups' offsets; BrewError where a group has live members.
    The replication factor is 3, or the number of brokers where that is smaller. Returns the names created.
    """
    names = [settings.topic, settings.dead_letter_topic]
    with open_admin(settings) as admin:
        brokers = admin.brokers()
        if recreate:
            for group in GROUPS:
                admin.delete_group(group)
            for name in names:
                admin.delete_topic(name)
            _wait("deletion of the old topics", lambda: not admin.topics() & set(names))
        replicas = min(REPLICATION_FACTOR, len(brokers))
        created = [
            name
            for name in names
            if admin.create_topic(name, replicas=replicas, dead_letters=name == settings.dead_letter_topic)
        ]
        _wait_for_leaders(admin, names)
    # Metadata reach each broker in its own time, and a client may ask any of them next.
    for broker in settings.brokers if created else ():
        with open_admin(settings, broker=broker) as admin:
            _wait_for_leaders(admin, names)
    return created


def await_empty_groups(settings: Settings, *, timeout_s: float) -> None:
    """Wait until no group has members: one that was killed is a member until its session ends.

    Raises BrewError where one has after so many seconds.
    """

    def empty() -> bool:
        try:
            return not any(admin.group(group, settings.topic).members for group in GROUPS)
        except BrewError:
            return False  # not known yet

    with open_admin(settings) as admin:
        try:
            wait_until("consumer groups without members", empty, timeout_s=timeout_s)
        except TimeoutError as error:
            raise BrewError(f"kafka: {error}", hint="stop those that `brewctl groups` names, or run it again") from None


def _wait_for_leaders(admin: Admin, names: list[str]) -> None:
    _wait("a leader for every partition", lambda: all(admin.is_led(name) for name in names))


def _wait(what: str, condition: Callable[[], bool]) -> None:
    try:
        wait_until(what, condition, timeout_s=_WAIT_S)
    except TimeoutError as error:
        raise BrewError(f"kafka: {error}", hint="run it again once `brewctl doctor` finds every broker") from None
