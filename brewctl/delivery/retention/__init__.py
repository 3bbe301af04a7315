"""What is dropped by its age: partitions of the outbox and of dedup tables, and old rows in small batches."""
