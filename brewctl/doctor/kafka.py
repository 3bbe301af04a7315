"""Kafka: whether brokers answer, topics take writes and are replicated, and each group has members."""

import time
from collections.abc import Iterator, Sequence

from brewctl.config import Settings
from brewctl.delivery import registry
from brewctl.delivery.broker import (
    MIN_IN_SYNC_REPLICAS,
    PARTITIONS,
    REPLICATION_FACTOR,
    Partition,
    Unreached,
    explained,
    library,
    open_admin,
    unreached,
    why_not,
)
from brewctl.doctor import clocks
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.errors import UnreachableError
from brewctl.overview import consumer_groups
from brewctl.overview.consumer_groups import GroupView

_CONNECT_S = 1.0
_START = "run `brewctl up`, or start the brokers that are missing"


def check(settings: Settings) -> Iterator[Finding]:
    """Check Kafka. Raises UnreachableError, BrewError."""
    with open_admin(settings) as admin:
        brokers = [(broker.node_id, broker.address) for broker in admin.brokers()]
        alive = [address for _, address in brokers]
        silent = [address for address in settings.brokers if why_not(address, timeout_s=_CONNECT_S)]
        yield judge_brokers(alive, silent, unreached(brokers))
        yield ok("kafka-client", f"{library(settings)}; brokers speak as {admin.protocol} or later")
        before = time.time()
        if clock := admin.clock():
            yield clocks.judge("kafka-clock", "kafka's controller", before, clock, time.time())
        there = admin.topics()
        for name, topic in (("topic", settings.topic), ("dead-letters", settings.dead_letter_topic)):
            if topic in there:
                in_sync = int(admin.configuration(topic)["min.insync.replicas"])
                yield from judge_topic(name, topic, admin.describe(topic), in_sync, brokers=len(alive))
            else:
                yield fail(name, f"{topic} is missing", mend="run `brewctl topic create`")
        if settings.topic in there:
            try:
                with explained(settings):
                    groups = consumer_groups.groups(admin, settings)
            except UnreachableError:
                found = "a broker that leads a partition, or coordinates a group, does not answer"
                yield fail("groups", found, mend=_START)
            else:
                yield from (judge_group(group, registry.started_as(settings, group.name)) for group in groups)


def judge_brokers(alive: Sequence[str], silent: Sequence[str], away: Sequence[Unreached] = ()) -> Finding:
    """Judge which brokers can be connected to."""
    if away:
        return fail("kafka", "; ".join(map(str, away)), mend=Unreached.mend)
    if silent:
        found = f"{','.join(silent)} can't be connected to"
        return warn("kafka", found, mend=_START)
    return ok("kafka", ",".join(alive))


def judge_topic(
    check: str, topic: str, partitions: Sequence[Partition], in_sync: int, *, brokers: int
) -> Iterator[Finding]:
    """Judge a topic whose writes each wait for `in_sync` replicas; one finding for each problem, ok where none is."""
    replicas = min(len(partition.replicas) for partition in partitions)
    wanted = min(REPLICATION_FACTOR, brokers)
    problems = [*_availability(check, partitions, in_sync)]
    if len(partitions) > PARTITIONS:
        found = f"{topic} has {len(partitions)} partitions, not {PARTITIONS}: "
        found += "a key's events from before they were added may be in another one than those since"
        problems.append(warn(check, found, mend="nothing has to be done: consumers read them all, and skip repeats"))
    if len(partitions) < PARTITIONS:
        found = f"{topic} has {len(partitions)} partition{'s' if len(partitions) > 1 else ''}, not {PARTITIONS}: "
        found += "did another client recreate it, and lose records?"
        add = f"kafka-topics.sh --alter --topic {topic} --partitions {PARTITIONS}"
        problems.append(warn(check, found, mend=f"see `brewctl outbox republish --missing --dry-run`; add them: {add}"))
    if replicas < wanted:
        found = f"{topic} is on {replicas} broker{'s' if replicas > 1 else ''}, and could be on {wanted}"
        problems.append(warn(check, found, mend="add replicas with kafka-reassign-partitions.sh"))
    if in_sync < min(MIN_IN_SYNC_REPLICAS, replicas):
        found = f"min.insync.replicas is {in_sync}: acknowledged records may be on a single broker"
        problems.append(warn(check, found, mend=f"set it to {MIN_IN_SYNC_REPLICAS} with kafka-configs.sh"))
    yield from problems or [ok(check, f"{topic}: {len(partitions)} partitions, RF {replicas}, min ISR {in_sync}")]


def _availability(check: str, partitions: Sequence[Partition], in_sync: int) -> Iterator[Finding]:
    leaderless = [each.partition for each in partitions if each.leader < 0]
    few = [each.partition for each in partitions if each.leader >= 0 and len(each.isr) < in_sync]
    behind = [each.partition for each in partitions if in_sync <= len(each.isr) < len(each.replicas)]
    if leaderless:
        yield fail(check, f"partitions {leaderless} have no leader: no client can write or read them", mend=_START)
    if few:
        found = f"partitions {few} have less than {in_sync} replicas in sync: nothing can be published there"
        yield fail(check, found, mend=_START)
    if behind:
        yield warn(check, f"partitions {behind} have replicas that are not in sync", mend=_START)


def judge_group(group: GroupView, role: str) -> Finding:
    """Judge a group's members and offsets."""
    name = f"group-{group.name}"
    if lost := [each for each in group.partitions if each.lost]:
        found = "; ".join(f"partition {each.partition}: {each.lost}" for each in lost)
        mend = f"run `brewctl outbox republish --missing`; `brewctl start {role}` goes on at the first record"
        return fail(name, found, mend=mend)
    if not group.members:
        found = f"no member reads; {group.lag} record{' waits' if group.lag == 1 else 's wait'}"
        return warn(name, found, mend=f"run `brewctl start {role}`")
    members = ", ".join(member.client_id for member in group.members)
    return ok(name, f"{group.state}, lag {group.lag}: {members}")
