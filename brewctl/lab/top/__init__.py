"""`brewctl top`: the whole system on one screen; on a sandbox with keys that disturb it.

observer: PostgreSQL, Kafka, the process table ─► snapshot ─► panels ─► app ◄─ keys ─► controls
                                                    └─ changes: the event log
"""
