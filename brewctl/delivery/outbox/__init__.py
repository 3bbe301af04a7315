"""The outbox: events are added in a transaction, and published to Kafka at least once, in order per aggregate.

Read `publisher` first; then `scan` (which rows it reads), `records` (rows as Kafka records), `lead` (one node publishes
for all) and `adding` (events of other services).
"""
