"""Makes the topic and its dead-letter topic, and deletes them with their groups' offsets."""

from collections.abc import Callable

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import REPLICATION_FACTOR, Admin, open_admin
from brewctl.delivery.topics import keeping
from brewctl.errors import BrewError, NotYetError
from brewctl.lifecycle import wait_until

_WAIT_S = 60.0


def create(
    settings: Settings, *, recreate: bool = False, whole: bool = False, keep: str = keeping.DEFAULT
) -> list[str]:
    """Create both topics where they are missing, and wait until every partition has a leader.

    `recreate` first deletes both, with the offsets of the downstreams' groups in these topics. Raises BrewError, and
    deletes nothing, where a group has members that read them.
    The replication factor is 3, or the number of brokers where that is smaller. `whole`: raises NotYetError where fewer
    brokers are running than the settings name (up to 3), as the topic would keep fewer replicas for good. `keep`: how
    long a topic that is created now keeps its records; dead letters are kept for ever. Returns the names created.
    """
    kept = {name: value for name, value in keeping.wanted(keeping.parse(keep)).items() if value is not None}
    names = [settings.topic, settings.dead_letter_topic]
    with open_admin(settings) as admin:
        brokers = admin.brokers()
        wanted = min(REPLICATION_FACTOR, len(settings.brokers))
        if whole and len(brokers) < wanted:
            raise NotYetError(f"kafka has {len(brokers)} of {wanted} brokers", hint="start the others")
        if recreate:
            _forget(settings, admin)
            for name in names:
                admin.delete_topic(name)
            _wait("deletion of the old topics", lambda: not admin.topics() & set(names))
        replicas = min(REPLICATION_FACTOR, len(brokers))
        created = [
            name
            for name in names
            if admin.create_topic(
                name,
                replicas=replicas,
                dead_letters=name == settings.dead_letter_topic,
                wanted=kept if name == settings.topic else None,
            )
        ]
        _wait_for_leaders(admin, names)
    # Each broker gets the new metadata at another moment, and a client may ask any of them next.
    for broker in settings.brokers if created else ():
        with open_admin(settings, broker=broker) as admin:
            _wait_for_leaders(admin, names)
    return created


def forget_offsets(settings: Settings) -> None:
    """Delete the downstreams' groups' offsets in both topics. Raises BrewError where one has members that read them."""
    with open_admin(settings) as admin:
        _forget(settings, admin)


def _forget(settings: Settings, admin: Admin) -> None:
    names = [settings.topic, settings.dead_letter_topic]
    groups = registry.kafka_groups(settings)
    admin.require_no_readers(names, groups)  # of all groups, before the first offset is deleted
    for group in groups:
        admin.forget(group, names)


def await_empty_groups(settings: Settings, *, timeout_s: float) -> None:
    """Wait until no downstream's group has members: a killed consumer stays a member until its session times out.

    Raises BrewError where a group still has members after `timeout_s`.
    """
    groups = registry.kafka_groups(settings)

    def empty() -> bool:
        try:
            return not any(admin.group(group, settings.topic).members for group in groups)
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
