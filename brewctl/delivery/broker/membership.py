"""Reading, as a member of a consumer group."""

import threading
from collections.abc import Callable, Sequence

from brewctl.config import Settings
from brewctl.delivery.broker import clients, overtaken
from brewctl.delivery.broker.overtaken import Overtaken
from brewctl.delivery.broker.record import Record


class Consumer:
    """One member of a group, from the earliest offset, offsets committed by hand.

    Rebalances happen inside `poll` and `keep_alive` alone: finish a batch and commit it before the next poll, or in
    `on_revoked`. Once `stop` is set, no call takes longer than what is left of kafka_leave_s seconds.
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
        """Join at the first poll. `on_revoked` is called within a poll, before partitions leave; it must not raise.

        `on_overtaken` is called within a poll, once it is logged, where the group goes on behind records that are gone.

        Raises UnreachableError where no broker answers now, BrewError.
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
        """Read the next records, per partition in order, as soon as there are any; at most consume_records.

        Raises BrewError for what no retry mends, else UnavailableError: then records may have been
        passed over, and this member must not be used, or commit, any more.
        """
        return self._member.poll(timeout_s=timeout_s)

    @property
    def idle_poll_s(self) -> float:
        """How long a poll may wait for records: a stop has to wait for it where the client can't end it."""
        return self._member.idle_poll_s

    @property
    def silent(self) -> bool:
        """Whether Kafka has answered no heartbeat for a session, as far as the client says. Any thread may ask."""
        return self._member.silent

    @property
    def assignments(self) -> int:
        """How often partitions were assigned: records that were read before the last time come again."""
        return self._member.assignments

    @property
    def behind(self) -> bool:
        """Whether records wait for this member's next poll: in memory, or at the brokers when they last answered.

        Those that came since a broker's last answer do not count.
        """
        return self._member.behind

    @property
    def committed_at(self) -> float:
        """When Kafka was last asked to commit, by time.monotonic(); -math.inf before the first time."""
        return self._member.committed_at

    def keep_alive(self) -> None:
        """Poll without reading, so that this member keeps its partitions while it waits with a batch in hand.

        Call it more often than every poll_interval_s seconds. Raises what `poll` raises.
        """
        self._member.keep_alive()

    def stay_while_leaving(self) -> None:
        """Within `on_revoked`: wait a moment, in which heartbeats go on. Without them a session may end meanwhile.

        For at most poll_interval_s seconds in all: so long the group waits for this member to join again.
        """
        self._member.stay_while_leaving()

    def commit(self, records: Sequence[Record]) -> str:
        """Commit the offsets after these records; the reason where Kafka would not.

        A refusal is a redelivery, not an error: the partitions have moved on.
        """
        return self._member.commit({(record.topic, record.partition): record.offset + 1 for record in records})

    def close(self) -> None:
        """Leave the group, so that its partitions move at once."""
        self._member.close()
