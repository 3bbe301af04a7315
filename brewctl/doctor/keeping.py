"""How long the topics keep records: which ones a new downstream gets, and which group may lose unread ones."""

from collections.abc import Iterator, Mapping

from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.broker import Admin, ForbiddenError, open_admin
from brewctl.delivery.topics import keeping
from brewctl.delivery.topics.keeping import Kept
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.errors import BrewError
from brewctl.overview import consumer_groups
from brewctl.sql import doctor_queries

_LOOKED_AT = 5000  # the first rows of the outbox, at most
_SOON = 2  # warn of a group once its oldest unread record is older than this part of the retention time: a half


def check(settings: Settings) -> Iterator[Finding]:
    """Check both topics. Yields nothing where a server or a topic is missing: other checks report that."""
    try:
        with open_admin(settings) as admin:
            there = admin.topics()
            if settings.topic in there:
                yield from _topic(admin, settings)
            if settings.dead_letter_topic in there:
                yield from _letters(admin, settings.dead_letter_topic)
    except ForbiddenError as error:
        found = f"how long topics keep their records is not known: {error.message}"
        yield warn("keeping", found, mend=f"{error.hint}; the role that may is the reader")
    except BrewError:
        return


def _topic(admin: Admin, settings: Settings) -> Iterator[Finding]:
    kept = keeping.look(admin, settings.topic)
    problems = list(kept.problems())
    mend = f"run `brewctl topic keep {keeping.words(kept.keep_ms)}`, or how long you want"
    for problem in problems:
        yield (fail if kept.compacts and "cleanup" in problem else warn)("keeping", problem, mend=mend)
    if not problems:
        firsts = {partition: first for partition, (first, _) in admin.ends(settings.topic).items()}
        yield ok("keeping", f"{settings.topic} keeps records {_how_long(kept)}; {_beginning(settings, firsts)}")
    if kept.keep_ms >= 0:
        yield from _late(admin, settings, kept.keep_ms)


def _how_long(kept: Kept) -> str:
    if kept.keep_ms < 0:
        return "for ever"
    by = "" if kept.settings["retention.ms"].source == "topic" else ", as the brokers say"
    return f"for {keeping.words(kept.keep_ms)}{by}, by whole segments for up to {keeping.words(kept.segment_ms)} more"


def _beginning(settings: Settings, firsts: Mapping[int, int]) -> str:
    """Say which events a new downstream gets."""
    removed = sum(firsts.values())
    if not removed:
        return "a new downstream gets every event from the first on"
    gone = f"its first {removed} records are removed"
    try:
        with database.connect(settings, name="brewctl doctor") as connection:
            asked = {"topic": settings.topic, "rows": _LOOKED_AT}
            places = {"partitions": list(firsts), "firsts": list(firsts.values())}
            (lacking,) = connection.execute(doctor_queries["removed_rows"], {**asked, **places}).fetchone() or (0,)
    except BrewError:
        return f"{gone}: a new downstream does not get those"
    if not lacking:
        return f"{gone}: a new downstream gets every event that the outbox still has"
    again = "`brewctl outbox republish --missing` gives it those that the outbox still has"
    return f"{gone}: a new downstream does not get those; {again}"


def _late(admin: Admin, settings: Settings, keep_ms: int) -> Iterator[Finding]:
    """Warn of groups whose unread records are old enough to be removed soon."""
    # A new group, which starts at the topic's first record, is judged like the others.
    positions = {view.name: view.positions for view in consumer_groups.groups(admin, settings)}
    for older_ms, verdict, when in (
        (keep_ms, fail, "may be removed at any moment"),
        (keep_ms // _SOON, warn, f"will be removed after {keeping.words(keep_ms)}"),
    ):
        for group, records in keeping.unread(admin, settings.topic, positions, older_ms=older_ms).items():
            positions.pop(group)
            unread = f"{records} unread record{' is' if records == 1 else 's are'}"
            found = f"{unread} older than {keeping.words(older_ms)}, and {when}"
            role = registry.started_as(settings, group)
            mend = f"run `brewctl topic keep forever` now, and `brewctl start {role}`"
            yield verdict(f"keeping-{group}", found, mend=mend)


def _letters(admin: Admin, topic: str) -> Iterator[Finding]:
    kept = keeping.look(admin, topic)
    problems = list(kept.problems())
    if kept.keep_ms >= 0:
        problems.append(f"{topic} keeps dead letters for {keeping.words(kept.keep_ms)} alone")
    if problems:
        wanted = "retention.ms=-1,retention.bytes=-1,cleanup.policy=delete"
        mend = f"dead letters must not expire: kafka-configs.sh --alter --topic {topic} --add-config {wanted}"
        yield warn("letters-keeping", "; ".join(problems), mend=mend)
