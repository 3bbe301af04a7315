"""Every bound of the running roles, and every wait for a server, by name and unit."""

from dataclasses import dataclass

from brewctl.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Every bound of the running roles, and every wait for a server. Units are in the names."""

    # gRPC: more calls than this in flight are answered RESOURCE_EXHAUSTED, with the time to wait before a retry.
    concurrent_calls: int = 256
    retry_after_s: float = 0.5
    # Threads that read orders, and those that try one alone which its batch did not write: each has a database
    # connection of its own at most.
    reading_threads: int = 8
    alone_threads: int = 8
    # Threads that cancel orders, half of them those whose order another transaction holds.
    cancelling_threads: int = 4
    # Creates whose idempotency key is known to be held by another transaction; half of alone_threads try them.
    held_orders: int = 64
    # Calls of every kind, also those on their way out: more are refused by the transport, without a word. Of
    # those, the ones that wait for their client, to send its message or to read its answer, and health's watchers.
    transport_calls: int = 4096
    waiting_calls: int = 512
    health_watchers: int = 1024
    # How long a connected client may be silent before it is asked for a sign of life, and then to give it.
    client_silence_s: float = 10.0
    # Where several processes share the port: a client keeps its connection for ever, and its calls with it in the
    # process that took it, so that one started later would get none. So a connection that is so old, on average, takes
    # no more calls, and its client makes another: once in this time a call waits for that, a few round trips.
    connection_age_s: float = 60.0
    # One request; what fits here fits Kafka's default record limit with room for the headers.
    request_bytes: int = 64 * 1024
    # One Create, Cancel or Get inside the database; a Create less where its caller's deadline is nearer.
    create_s: float = 5.0
    # Orders that are committed together: the wait for their connection, their statement, and its wait for a lock.
    # Longer than that, each of them waits alone.
    create_connection_s: float = 0.5
    create_batch_s: float = 1.0
    create_lock_s: float = 0.1
    # How long a call waits for a database connection before UNAVAILABLE.
    database_wait_s: float = 2.0
    # One connection attempt, then one statement, as the server counts; then as the client does, which also
    # notices a server that says nothing any more. Each longer than the one before.
    database_connect_s: int = 5
    database_statement_s: int = 30
    database_answer_s: float = 35.0
    # A change of the schema: how long it waits for a table's lock at a time, so long do others wait behind it; half of
    # the 100 ms that no call may wait for a migration. The same where a table could not be had like that for a third
    # of the time. How long it goes on asking; how long one statement, an index's build, may take.
    schema_lock_s: float = 0.05
    schema_lock_longest_s: float = 0.2
    schema_wait_s: float = 60.0
    schema_s: int = 600
    # How often an order-service looks whether the database is there, and how long it waits for the answer.
    database_look_s: float = 1.0
    # A session that holds row locks and does nothing is ended by PostgreSQL, so a paused
    # publisher can't keep its rows from the others. Must be longer than publish_s.
    database_idle_transaction_s: int = 15
    # Outbox rows a transaction, at first and at most, and their payloads (one row always fits): with their
    # headers they fit into one batch of Kafka's. How long it may wait for acknowledgements.
    publish_rows_first: int = 100
    publish_rows: int = 1000
    publish_bytes: int = 512 * 1024
    publish_s: float = 5.0
    # How soon a publisher that is not told of commits looks again after rows.
    publish_again_s: float = 0.1
    # So long does a node that publishes for all lead without renewing it; one that is killed is waited for so long.
    publish_lead_s: float = 0.5
    # Between two looks at an idle outbox, on average; commits of this process wake it at once.
    publish_poll_s: float = 0.5
    # Consumer: records a transaction, at first and at most, and bytes that one partition may bring into memory at a
    # time. A consumer whose effect is slow does not begin with a transaction that runs into its timeout.
    consume_records_first: int = 100
    consume_records: int = 2000
    consume_partition_bytes: int = 1024 * 1024
    # One that has read everything rests after a batch by what that cost, so long at most.
    consume_rest_s: float = 0.05
    # Offsets of what is done are committed so seldom, and before more records than these would come again.
    offset_commit_s: float = 1.0
    redelivery_records: int = 20_000
    # Between tries of an event that failed in a lane: at first, and at most; each pause is twice the one before.
    lane_retry_first_s: float = 1.0
    lane_retry_s: float = 60.0
    # So many events of a downstream wait for its lanes; then it takes no more.
    waiting_events: int = 10_000
    # So many events whose effect fails, with no success between, are no event's fault: the downstream stops.
    failures_in_a_row: int = 10
    # A member that is silent for a session loses its partitions, and so does one that has not polled for so long.
    session_s: float = 15.0
    heartbeat_s: float = 1.0
    poll_interval_s: float = 300.0
    # Kafka: the first answer of any broker, metadata of a topic, a request of a role, one of a command.
    kafka_connect_s: float = 5.0
    kafka_metadata_s: float = 2.0
    kafka_request_s: float = 30.0
    kafka_admin_s: float = 15.0
    # How old a role's knowledge of its topics may be: partitions that were added are found within it.
    kafka_metadata_age_s: float = 30.0
    # After a stop: how long a consumer waits for Kafka to take its last commit and its leave.
    kafka_leave_s: float = 3.0
    # How long a command goes on asking a cluster that answers "not yet".
    kafka_patience_s: float = 30.0
    # How often an order-service looks whether its certificate or its tokens have changed.
    files_look_s: float = 0.5
    # After the first signal: how long an order-service listens on, to refuse with a reason; how long work in hand
    # may take.
    linger_s: float = 0.1
    drain_s: float = 10.0
    # Processes that share a port open it together: how long they wait for another one to get ready.
    worker_ready_s: float = 60.0

    @property
    def order_connections(self) -> int:
        """Of one order-service to the database, at most: its threads', writer's, publisher's, watch's, presence's."""
        return self.reading_threads + self.alone_threads + self.cancelling_threads + 4

    @property
    def longest_turn_s(self) -> float:
        """No turn of a loop that asks PostgreSQL or Kafka takes longer: the sum of all waits that one may have."""
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
        # One try; a consumer polls between two of them, and keeps its partitions.
        if self.poll_interval_s <= self.database_wait_s + self.database_answer_s + 2 * self.publish_s:
            raise UsageError("poll_interval_s must be longer than one try of a batch: database and dead letters")
