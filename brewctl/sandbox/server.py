"""The record of a started process. Every command reads it, so this module imports no psutil."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    """A process that we started. Its start time tells it from a later process with the same pid."""

    name: str  # postgres, kafka-1, kafka-2, …, or a background node's name
    pid: int
    started: float  # seconds since the epoch; the clock may be set while the process runs
    port: int  # 0: it listens on none
    log: str
    birth: str = ""  # boot id and start in ticks since boot, which no clock changes; "" where unknown
    role: str = ""  # of a background node: order, publisher, or a downstream
    log_start: int = 0  # the size of its output file when it started, which earlier processes wrote
