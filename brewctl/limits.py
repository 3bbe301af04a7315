"""Every bound of the running roles, and every wait for a server, by name and unit."""

from dataclasses import dataclass

from brewctl.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """All limits. Units are in the names."""

    # gRPC calls in flight. Further ones are answered RESOURCE_EXHAUSTED, with the time to wait before a retry.
    concurrent_calls: int = 256
    retry_after_s: float = 0.5
    # Threads that read orders, and threads that write an order alone after its batch could not. Each has at most one
    # database connection.
    reading_threads: int = 8
    alone_threads: int = 8
    # Threads that cancel orders; half of them may wait for an order that another transaction has locked.
    cancelling_threads: int = 4
    # Waiting creates whose idempotency key another transaction has locked; half of alone_threads try them.
    held_orders: int = 64
    # Calls of all kinds, also those that are being answered: the transport refuses more, without a reason. Of those:
    # calls that wait for their client, to send its message or to read the answer; and watchers of health.
    transport_calls: int = 4096
    waiting_calls: int = 512
    health_watchers: int = 1024
    # After so long without data from a client the server sends a keepalive ping, and waits as long for its answer.
    client_silence_s: float = 10.0
    # Only if several processes share the port. A client keeps its connection, so all its calls go to one process, and a
    # process that is started later would get none. So a connection of this age, on average, takes no more calls and the
    # client opens another one, for which a call waits a few round trips.
    connection_age_s: float = 60.0
    # One request. Its event fits Kafka's default record limit, with room for the headers.
    request_bytes: int = 64 * 1024
    # One Create, Cancel or Get in the database; a Create less if its caller's deadline is nearer.
    create_s: float = 5.0
    # A batch of orders that is committed together: its wait for a connection, and its statement. After these times each
    # order is written alone.
    create_connection_s: float = 0.5
    create_batch_s: float = 1.0
    # How long each try of a Create, of a batch or of a Cancel waits for a database lock; 0: as long as its statement.
    create_lock_s: float = 0.1
    # How long a call waits for a database connection before it is answered UNAVAILABLE.
    database_wait_s: float = 2.0
    # One connection attempt; one statement, by the server's timeout; one statement, by the client's, which also
    # notices a silent server. Each is longer than the one before.
    database_connect_s: int = 5
    database_statement_s: int = 30
    database_answer_s: float = 35.0
    # A change of the schema. How long one try waits for a table's lock, while other statements wait behind it: half of
    # the 100 ms that a migration may delay a call. The same after a third of schema_wait_s without success. How long it
    # tries in all. How long one statement may take, such as the build of an index.
    schema_lock_s: float = 0.05
    schema_lock_longest_s: float = 0.2
    schema_wait_s: float = 60.0
    schema_s: int = 600
    # How often an order-service checks whether the database answers, and how long it waits for the answer.
    database_look_s: float = 1.0
    # PostgreSQL ends a session that is idle in a transaction for so long, so that a paused publisher can't keep its
    # rows locked. Must be longer than publish_s.
    database_idle_transaction_s: int = 15
    # Publisher: outbox rows in one transaction, at first and at most; and the bytes of their payloads (one row always
    # fits), so that with headers they fit one batch of Kafka. How long a transaction waits for acknowledgements.
    publish_rows_first: int = 100
    publish_rows: int = 1000
    publish_bytes: int = 512 * 1024
    publish_s: float = 5.0
    # How soon a publisher that is not notified of commits looks at the outbox again after a batch.
    publish_again_s: float = 0.1
    # How long the lease of the leading publisher lasts unless it is renewed: after a kill the others wait so long.
    publish_lead_s: float = 0.5
    # Between two looks at an idle outbox, on average; a commit of the same process wakes the publisher at once.
    publish_poll_s: float = 0.5
    # Consumer: records in one transaction, at first and at most, and bytes of one fetch of a partition. It begins with
    # few, so that a slow handler's first transaction does not time out.
    consume_records_first: int = 100
    consume_records: int = 2000
    consume_partition_bytes: int = 1024 * 1024
    # A consumer without lag pauses after a batch in proportion to its cost, at most so long.
    consume_rest_s: float = 0.05
    # Offsets are committed once in this time, or when more than so many processed records are uncommitted.
    offset_commit_s: float = 1.0
    redelivery_records: int = 20_000
    # The pause before an event that failed in a lane is tried again: at first, and at most; it doubles with each try.
    lane_retry_first_s: float = 1.0
    lane_retry_s: float = 60.0
    # Events of a downstream that may wait for its lanes. Beyond that it takes no more until some are done.
    waiting_events: int = 10_000
    # After so many failed events in a row the downstream stops: the cause is not the single event.
    failures_in_a_row: int = 10
    # A member loses its partitions after session_s without a heartbeat, or after poll_interval_s without a poll.
    session_s: float = 15.0
    heartbeat_s: float = 1.0
    poll_interval_s: float = 300.0
    # Kafka: the wait for the first answer of any broker, a topic's metadata, a role's request, a command's request.
    kafka_connect_s: float = 5.0
    kafka_metadata_s: float = 2.0
    kafka_request_s: float = 30.0
    kafka_admin_s: float = 15.0
    # The age of a role's metadata of its topics: added partitions are found within this time.
    kafka_metadata_age_s: float = 30.0
    # After a stop: how long a consumer waits for Kafka's answers to its last commit and to its leaving the group.
    kafka_leave_s: float = 3.0
    # How long a command retries requests that a cluster answers with a retriable error.
    kafka_patience_s: float = 30.0
    # How often an order-service checks whether its certificate or its tokens have changed.
    files_look_s: float = 0.5
    # After the first signal: how long an order-service still listens, to refuse calls with a reason; how long
    # unfinished work may take.
    linger_s: float = 0.1
    drain_s: float = 10.0
    # Processes that share a port open it at the same time: how long they wait for each other.
    worker_ready_s: float = 60.0

    @property
    def order_connections(self) -> int:
        """The most database connections of an order-service: threads, writer, publisher, watch and presence."""
        return self.reading_threads + self.alone_threads + self.cancelling_threads + 4

    @property
    def longest_turn_s(self) -> float:
        """The longest turn of a loop that asks PostgreSQL or Kafka, in seconds: the sum of all waits in one turn."""
        database_s = self.database_wait_s + self.database_connect_s + 3 * self.database_answer_s
        kafka_s = self.kafka_connect_s + self.kafka_metadata_s + self.kafka_request_s + 2 * self.publish_s
        return database_s + kafka_s

    def __post_init__(self) -> None:
        if self.session_s < 3 * self.heartbeat_s:
            raise UsageError(
                f"session timeout {self.session_s:g} s must be at least 3 heartbeats of {self.heartbeat_s:g} s"
            )
        if self.database_idle_transaction_s <= self.publish_s:
            raise UsageError("database_idle_transaction_s must be longer than publish_s")
        if not self.database_connect_s < self.database_statement_s < self.database_answer_s:
            raise UsageError("database_connect_s, database_statement_s, database_answer_s must grow in this order")
        # A consumer polls between two tries of a batch. One try must be shorter, so that it keeps its partitions.
        if self.poll_interval_s <= self.database_wait_s + self.database_answer_s + 2 * self.publish_s:
            raise UsageError("poll_interval_s must be longer than one try of a batch: database and dead letters")
