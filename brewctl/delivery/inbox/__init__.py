"""The idempotent consumer: each event's effect once, however often Kafka delivers it, or the event is parked."""
