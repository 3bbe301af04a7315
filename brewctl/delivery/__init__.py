"""The heart: what an event is, how it leaves the database (outbox) and how its effect happens once (inbox)."""
