"""Applies each event of a downstream once, from a poll of Kafka to the effect. Its modules, in reading order.

`node` starts one node. `consumption` polls, has one batch `in_flight`, and commits `settled_offsets`.
`inbox` applies a `batch`, in transactions of `batch_size`: `effects`, `failures`, `parking`, `burial`, `dead_letter`.
`waiting_events`, `lanes` and `lane_call` do so for a downstream with lanes. A row of theirs is a `stored_event`.
`retrying` names why a batch is retried; `traced_inbox` and `traced_calls` add spans.
"""
