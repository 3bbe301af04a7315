"""Read-only questions: counters, work by node, unfinished and lost orders, replicas, and consumer groups."""

from brewctl.overview.counters import (
    Counts,
    Unfinished,
    counts,
    distribution,
    distribution_line,
    missing,
    unfinished,
    with_homes,
    work_by_node,
)
from brewctl.overview.progress import Flow, flow
from brewctl.overview.replicas import NodeRow, nodes

__all__ = [
    "Counts",
    "Flow",
    "NodeRow",
    "Unfinished",
    "counts",
    "distribution",
    "distribution_line",
    "flow",
    "missing",
    "nodes",
    "unfinished",
    "with_homes",
    "work_by_node",
]
