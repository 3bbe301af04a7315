"""Read-only questions: the counters, who did what, what is unfinished or lost, which replicas there are."""

from brewctl.overview.counters import (
    Counts,
    Unfinished,
    counts,
    distribution,
    distribution_line,
    missing,
    unfinished,
    work_by_node,
)
from brewctl.overview.replicas import NodeRow, nodes

__all__ = [
    "Counts",
    "NodeRow",
    "Unfinished",
    "counts",
    "distribution",
    "distribution_line",
    "missing",
    "nodes",
    "unfinished",
    "work_by_node",
]
