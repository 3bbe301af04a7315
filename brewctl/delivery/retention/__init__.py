"""Drops old data: partitions of the outbox and of dedup tables, and old rows of other tables in small batches.

Read `plan` first: it decides whether a partition may be dropped, without I/O. `look` reads from PostgreSQL and Kafka
what the decision needs, `turn` lets one run work at a time, and `retention` drops the partitions. `expiry` deletes old
rows of the other tables.
"""
