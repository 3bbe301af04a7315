"""Run all checks at the same time, so that a server that does not answer delays no other check."""

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

# The bound of the whole examination: longer than all bounds of one server below, together.
_BOUND_S = 20.0
# A person waits for the answer, so these bounds are shorter than those of a role.
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
    """A server or machine to check. If `ask` raises, the error becomes a failure under this name."""

    name: str
    ask: Callable[[], Iterator[Finding]]


def examine(settings: Settings | None, home: Path) -> Iterator[Finding]:
    """Check this machine, its sandbox in `home`, and the servers. Yields findings as they come, in this order.

    Without `settings` the servers' addresses are unknown, and only the machine is checked. A check that depends on a
    failed one is skipped. Raises nothing, and takes at most 20 seconds.
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
    """Check all subjects at the same time; yield findings in the subjects' order, and a failure for a late one."""
    deadline = time.monotonic() + within_s
    answers = [(subject, _begin(subject)) for subject in subjects]
    for subject, found in answers:
        try:
            while finding := found.get(timeout=max(0.0, deadline - time.monotonic())):
                yield finding
        except queue.Empty:
            mend = "is this machine, or that server, overloaded?"
            yield fail(subject.name, f"did not answer within {within_s:g} s", mend=mend)


def _begin(subject: Subject) -> "queue.SimpleQueue[Finding | None]":
    """Run a subject's checks in a thread; the queue gets None after the last finding."""
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            for finding in subject.ask():
                found.put(finding)
        except BrewError as error:
            found.put(failed(subject.name, error))
        except Exception as error:  # noqa: BLE001 - reported as a finding
            message = f"unexpected {type(error).__name__}: {error}"
            found.put(fail(subject.name, message, mend="it is a fault of brewctl: report it"))
        finally:
            found.put(None)

    # A daemon thread: a late check must not delay the end of the process, nor a Ctrl-C.
    threading.Thread(target=ask, name=subject.name, daemon=True).start()
    return found
