"""The write path: an order and its event are written in one commit. Nothing here talks to Kafka.

Read `acceptance` first (validates a request), then `store` (the statements) and `group_commit` (many orders in one
commit); `alone` and `refusals` (orders that a batch did not write); `cancellation`.
"""
