"""Errors for users: why Kafka can't be reached, or can't do what it was asked."""

from brewctl.config import Settings
from brewctl.delivery import advice
from brewctl.delivery.broker import advertised
from brewctl.delivery.broker.outcomes import ForbiddenError, UnavailableError
from brewctl.errors import BrewError, NotYetError, UnreachableError, UsageError

RIGHTS = "`brewctl topic grants` prints what each user needs"


def unreachable(settings: Settings) -> UnreachableError:
    """Return the error that names the address without an answer: a configured one, or one that a broker advertises."""
    where = ",".join(settings.brokers)
    found = advertised.diagnose(settings)
    answered, away = found.answered, found.unreached
    if found.refused and not answered:
        return _refused(found)
    if not answered:
        return UnreachableError(f"kafka {where} does not answer", hint=advice.for_kafka(settings))
    if not away:
        return UnreachableError(f"kafka {where} answers, but not in time", hint="try again, or run `brewctl doctor`")
    return UnreachableError(
        f"kafka {','.join(answered)} answers, but {'; '.join(map(str, away))}", hint=advertised.Unreached.mend
    )


def refused(settings: Settings) -> UnreachableError | None:
    """Return why the brokers refuse these settings, such as a wrong protocol or password; None if they do not."""
    found = advertised.diagnose(settings)
    return _refused(found) if found.refused and not found.answered else None


def _refused(found: advertised.Diagnosis) -> UnreachableError:
    return UnreachableError(f"kafka {found.refused[0]}", hint=found.refused[0].hint)


def reason(settings: Settings, error: Exception) -> str:
    """Return why Kafka did not acknowledge: brokers that refuse or can't be reached, else the library's error."""
    try:
        found = advertised.diagnose(settings)
    except UsageError as unreadable:  # a file of a certificate or password
        return unreadable.message
    return "; ".join(map(str, [*found.refused, *found.unreached])) or str(error).strip()


def forbidden(settings: Settings, may_not: str) -> ForbiddenError:
    """Return the error of a user that lacks a right, such as "READ topic orders"."""
    name = settings.kafka_security.username
    user = f"user {name}" if name else "this user"
    return ForbiddenError(f"kafka {user} may not {may_not}", hint=RIGHTS)


def is_forbidden(error: UnavailableError) -> bool:
    """Return whether a record was not sent because this user lacks a right. Both libraries' errors end in RIGHTS."""
    return RIGHTS in str(error)


def absent(*topics: str) -> NotYetError:
    """Return the error of topics that do not exist."""
    return NotYetError(f"topic {' and '.join(topics)} missing in kafka", hint="run `brewctl topic create`")


def other_protocol(group: str) -> BrewError:
    """Return the error of a member whose group uses another balancing protocol."""
    return BrewError(
        f"consumer group {group} is held by a client with another balancing protocol",
        hint="stop that client, or let it use the round-robin assignor",
    )


def open_transaction(topic: str, partitions: list[int]) -> BrewError:
    """Return the error of a reader that can't read on because of another producer's open transaction."""
    return BrewError(
        f"a transaction of another producer is open in partitions {partitions} of {topic}: "
        "records after its first one can't be read yet",
        hint="wait for its end, or end it: kafka-transactions.sh find-hanging, then abort",
    )
