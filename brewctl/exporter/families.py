"""The exporter's metrics: names, labels and help texts."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Family:
    """A metric, and the labels of its series."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One value; label values in the order of the family's labels."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


BUILD_INFO = Family("brew_build_info", "The version that runs, and in which role; always 1.", ("role", "version"))
UP = Family("brew_up", "Whether a server answers: 1, or 0 while its series are left out.", ("server",))
QUESTION_UP = Family(
    "brew_exporter_question_up",
    "Whether a question to a server that answers was answered: 0 where its table, topic or right is missing.",
    ("server", "question"),
)
LOOK_SECONDS = Family("brew_exporter_look_seconds", "How long the last look at a server took.", ("server",))
OUTBOX_ROWS = Family(
    "brew_outbox_rows",
    "Outbox rows that are not published: ready, or set aside as Kafka refused them; at most 100000 are counted.",
    ("state",),
)
OUTBOX_OLDEST = Family(
    "brew_outbox_oldest_seconds",
    "Age of the oldest outbox row that is ready and not published, by PostgreSQL's clock; 0 where none waits.",
)
PARKED = Family(
    "brew_parked_events", "Events that a consumer has parked and that wait for `dlq redrive`.", ("consumer",)
)
WAITING = Family(
    "brew_waiting_events",
    "Events that a consumer with lanes has taken, and that wait for its handler; at most 100000 are counted.",
    ("consumer",),
)
WAITING_OLDEST = Family(
    "brew_waiting_oldest_seconds",
    "For how long the oldest of them has waited, by PostgreSQL's clock; 0 where none waits.",
    ("consumer",),
)
REPLICAS = Family("brew_replicas", "Replicas of a role that have reported lately, on all machines.", ("role",))
OLDEST_TRANSACTION = Family(
    "brew_postgres_oldest_transaction_seconds",
    "Age of the oldest open transaction of another client in the database; left out where the user may not see it.",
    ("server",),
)
LAG_RECORDS = Family(
    "brew_group_lag_records",
    "Records of a partition that a group has not consumed, by its committed offset (committed once a second).",
    ("group", "partition"),
)
LAG_SECONDS = Family(
    "brew_group_lag_seconds",
    "Age of the oldest record that a group has not consumed, by its committed offsets; 0 where there is none.",
    ("group",),
)
OVERTAKEN = Family(
    "brew_group_overtaken_records",
    "Records that were removed before a group read them, by its committed offsets; 0 once it has gone on behind them.",
    ("group",),
)
MEMBERS = Family("brew_group_members", "Members of a consumer group, as Kafka knows them.", ("group",))
DEAD_LETTERS = Family(
    "brew_dead_letters",
    "Dead letters of a group in the dead-letter topic: open, redriven or dropped.",
    ("group", "state"),
)
PARTITIONS = Family(
    "brew_partitions", "Partitions of the outbox, or of the dedup table, in a database.", ("server", "table")
)
PARTITIONS_AHEAD = Family(
    "brew_partitions_ahead",
    "Empty partitions behind the one that rows are written to: with none, roles make the next one themselves.",
    ("server", "table"),
)
WATERMARK = Family("brew_retention_watermark", "Outbox rows with smaller ids were dropped by retention; 0: none was.")
RETENTION_RAN = Family(
    "brew_retention_last_run_seconds", "Since the end of the last whole run of `brewctl db retention`; +Inf: never."
)
RETENTION_HELD = Family(
    "brew_retention_held_back_seconds",
    "For how long a full partition may not be dropped, as the runs of `brewctl db retention` found it; 0: none.",
)
RETENTION_REFUSED = Family(
    "brew_retention_refused",
    "Whether the last run of `brewctl db retention` found something wrong, and dropped nothing.",
)

FAMILIES = (
    BUILD_INFO,
    UP,
    QUESTION_UP,
    LOOK_SECONDS,
    OUTBOX_ROWS,
    OUTBOX_OLDEST,
    PARKED,
    WAITING,
    WAITING_OLDEST,
    REPLICAS,
    OLDEST_TRANSACTION,
    PARTITIONS,
    PARTITIONS_AHEAD,
    WATERMARK,
    RETENTION_RAN,
    RETENTION_HELD,
    RETENTION_REFUSED,
    LAG_RECORDS,
    LAG_SECONDS,
    OVERTAKEN,
    MEMBERS,
    DEAD_LETTERS,
)
