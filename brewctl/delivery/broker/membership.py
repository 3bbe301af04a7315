"""Consumer: reads the topic as a member of a consumer group."""

import threading
from collections.abc import Callable, Sequence

from brewctl.config import Settings
from brewctl.delivery.broker import clients, overtaken
from brewctl.delivery.broker.overtaken import Overtaken
from brewctl.delivery.broker.record import Record


class Consumer:
    """One member of a consumer group. A new group starts at the earliest offset.

    Delivery: at least once. Rebalances happen only within `poll` and `keep_alive`: finish a batch and commit it before
    the next poll, or in `on_revoked`. After `stop` is set, all calls together take at most kafka_leave_s seconds.
    """

    def __init__(
        self,
        settings: Settings,
        stop: threading.Event,
        *,
        group: str,
        node: str,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[], None],
        on_overtaken: overtaken.Told = overtaken.nobody,
    ) -> None:
        """Connect; the first poll joins the group. Raises UnreachableError if no broker answers, BrewError.

        The callbacks are called within a poll. `on_revoked`: before partitions are taken away; it must not raise.
        `on_overtaken`: when the group goes on after records that were removed before it read them; they are logged.
        """

        def tell(found: Sequence[Overtaken]) -> None:
            overtaken.tell(group, found)
            on_overtaken(found)

        self._member = clients.chosen(settings).Member(
            settings,
            stop,
            group=group,
            node=node,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            on_overtaken=tell,
        )

    def poll(self, *, timeout_s: float) -> list[Record]:
        """Return the next records, in order per partition, as soon as there are any; at most consume_records.

        Raises BrewError if no retry helps, else UnavailableError. After that records may have been skipped: this member
        must not poll or commit any more.
        """
        return self._member.poll(timeout_s=timeout_s)

    @property
    def idle_poll_s(self) -> float:
        """How many seconds a poll may wait for records. A stop waits as long if the library can't interrupt a poll."""
        return self._member.idle_poll_s

    @property
    def silent(self) -> bool:
        """Whether Kafka has answered no heartbeat for a session timeout, if the library can tell. Thread-safe."""
        return self._member.silent

    @property
    def assignments(self) -> int:
        """How many assignments there were. Kafka delivers uncommitted records from before the last one again."""
        return self._member.assignments

    @property
    def behind(self) -> bool:
        """Whether records wait for this member's next poll: in memory, or at the brokers when they last answered.

        Records that were written since a broker's last answer don't count.
        """
        return self._member.behind

    @property
    def committed_at(self) -> float:
        """When Kafka was last asked to commit, by time.monotonic(); -math.inf before the first time."""
        return self._member.committed_at

    def keep_alive(self) -> None:
        """Poll without reading, so that this member keeps its partitions during a long batch.

        Call it at least every poll_interval_s seconds. Raises what `poll` raises.
        """
        self._member.keep_alive()

    def stay_while_leaving(self) -> None:
        """Within `on_revoked`: wait a moment while heartbeats are sent. Without them the session may time out.

        In all at most poll_interval_s seconds: the group waits so long for this member to join again.
        """
        self._member.stay_while_leaving()

    def commit(self, records: Sequence[Record]) -> str:
        """Commit the offsets after these records. Return why Kafka refused, else "".

        A refusal is no error: another member owns the partitions by now, and Kafka delivers the records to it.
        """
        return self._member.commit({(record.topic, record.partition): record.offset + 1 for record in records})

    def close(self) -> None:
        """Leave the group, so that other members get its partitions at once."""
        self._member.close()
