"""The groups that are verified."""

GROUPS = ("inventory", "notifications")
