"""`brewctl top`: everything that runs on one screen, and on a sandbox the keys to disturb it.

observer: PostgreSQL, Kafka, the process table ─► snapshot ─► panels ─► app ◄─ keys ─► controls
                                                    └─ changes: the event log
"""
