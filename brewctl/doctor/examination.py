"""Everything that is looked at, at the same time: a server that says nothing holds up no other."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from brewctl.config import Settings
from brewctl.doctor import deployments, elsewhere, kafka, keeping, machine, orders, postgres, records
from brewctl.doctor.finding import Finding, fail, failed
from brewctl.errors import BrewError
from brewctl.limits import Limits

# For all of it: longer than any server's own bounds below, together.
_BOUND_S = 20.0
# Somebody waits for the answer: less than what a role bears.
_HASTY = Limits(
    database_connect_s=3,
    database_statement_s=4,
    database_answer_s=5.0,
    kafka_connect_s=3.0,
    kafka_admin_s=4.0,
    kafka_patience_s=2.0,
)


@dataclass(frozen=True)
class Subject:
    """Something to look at. Where it can't be asked on, `ask` raises: that is a finding too, under this name."""

    name: str
    ask: Callable[[], Iterator[Finding]]


def examine(settings: Settings | None, home: Path) -> Iterator[Finding]:
    """Look at this machine, its sandbox in `home`, and the servers; yield what is found, as it comes, in that order.

    `settings` is None where it is unknown where the servers are: they are not asked then. What depends on something
    that failed is not asked either. Raises nothing, and takes at most 20 seconds.
    """
    subjects = [Subject("machine", partial(machine.check, home, java=os.environ.get("BREW_JAVA", "")))]
    if settings:
        hasty = replace(settings, limits=_HASTY)
        subjects += [
            Subject("postgres", partial(postgres.check, hasty)),
            Subject("downstreams", partial(elsewhere.check, hasty)),
            Subject("kafka", partial(kafka.check, hasty)),
            Subject("keeping", partial(keeping.check, hasty)),
            Subject("deployment", partial(deployments.check, hasty)),
            Subject("records", partial(records.check, hasty)),
            *(
                Subject("order-service", partial(orders.check, address, settings.order_security))
                for address in settings.order_addrs
            ),
        ]
    return together(subjects, within_s=_BOUND_S)


def together(subjects: list[Subject], *, within_s: float) -> Iterator[Finding]:
    """Ask all at the same time; yield what each found in their order, and a failure for one that is late."""
    deadline = time.monotonic() + within_s
    answers = [(subject, _begin(subject)) for subject in subjects]
    for subject, found in answers:
        try:
            while finding := found.get(timeout=max(0.0, deadline - time.monotonic())):
                yield finding
        except queue.Empty:
            yield fail(subject.name, f"did not answer within {within_s:g} s", mend="is the machine, or it, overloaded?")


def _begin(subject: Subject) -> "queue.SimpleQueue[Finding | None]":
    """Ask in a thread; None comes after the last finding."""
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            for finding in subject.ask():
                found.put(finding)
        except BrewError as error:
            found.put(failed(subject.name, error))
        except Exception as error:  # noqa: BLE001 - a finding as well
            message = f"unexpected {type(error).__name__}: {error}"
            found.put(fail(subject.name, message, mend="it is a fault of brewctl: report it"))
        finally:
            found.put(None)

    # A daemon: nobody waits for one that is late, nor after a Ctrl-C.
    threading.Thread(target=ask, name=subject.name, daemon=True).start()
    return found
