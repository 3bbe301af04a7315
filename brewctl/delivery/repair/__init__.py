"""What an operator does: dead letters, rows set aside, events published again, a group's offsets reset."""
