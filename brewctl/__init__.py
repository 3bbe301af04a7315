"""Brew orders: a transactional outbox, Kafka and idempotent consumers, as one command."""

__version__ = "0.1.0"
