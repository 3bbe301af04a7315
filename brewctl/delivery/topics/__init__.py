"""The topic and its dead-letter topic: how they are made, how long they keep records, and which users may use them.

Read `topics` first, which makes them; then `keeping` (how long records stay), `acls` (the users' rights) and
`group_progress` (a consumer group's offsets and lag).
"""
