"""Repairs by an operator: dead letters, rows set aside, events published again, a group's offsets reset.

Read `dead_letters` first, then `republish`, which looks up dead letters. `outbox_rows` (rows that the publisher set
aside) and `group_reset` are independent.
"""
