"""Data that is dropped by its age: partitions of the outbox and of dedup tables, and old rows in small batches.

Read `plan` first: it judges whether a partition may go, without asking a server. `look` asks PostgreSQL and Kafka for
the evidence, `turn` keeps two runs apart, and `retention` drops the partitions. `expiry` deletes old rows of the other
tables.
"""
