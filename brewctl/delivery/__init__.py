"""Delivers events: from the database to Kafka at least once (outbox), with each effect exactly once (inbox)."""
