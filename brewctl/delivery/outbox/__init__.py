"""The outbox: events are added in a transaction, and published to Kafka at least once, in order per aggregate."""
