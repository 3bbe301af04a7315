"""Whether each published row has reached, or will reach, each group: PostgreSQL compared with Kafka."""

import time
from collections.abc import Iterator

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.repair.republish import Search, Summary
from brewctl.delivery.schema import registration
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.errors import BrewError

_LOOK_S = 6.0
_ALL = "run `brewctl outbox republish --missing --dry-run`, which looks through all"


def check(settings: Settings) -> Iterator[Finding]:
    """Compare for 6 seconds at most. Yields nothing where a server, a table or a topic is missing: other checks do."""
    found = Summary()
    complete = True
    deadline = time.monotonic() + _LOOK_S
    try:
        with database.connect(settings, name="brewctl doctor") as connection:
            registration.require_story(settings, connection)
            for page in Search(settings, connection).pages():
                found.add(page)
                if time.monotonic() > deadline:
                    complete = False
                    break
    except BrewError:
        return
    yield from judge(found, complete=complete)


def judge(found: Summary, *, complete: bool) -> Iterator[Finding]:
    """Fail for each group that never gets some published rows. `complete`: all rows were compared."""
    for group in sorted({group for group, _ in found.lacking}):
        reasons = {why: count for (name, why), count in found.lacking.items() if name == group}
        rows = sum(reasons.values())
        text = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
        said = f"{rows} published row{'' if rows == 1 else 's'} never came to it, and never will ({text})"
        yield fail(f"records-{group}", said, mend="run `brewctl outbox republish --missing`")
    if not complete:
        yield warn("records", f"not all rows were looked at within {_LOOK_S:g} s", mend=_ALL)
    elif not found.lacking:
        yield ok("records", "every published row has come to each group, or will")
