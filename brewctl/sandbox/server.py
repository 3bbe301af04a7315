"""What is remembered of a process that was started, apart from what is done with it: every command reads it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    """A process that we started. A pid is believed only together with its start time."""

    name: str  # postgres, kafka-1, kafka-2, …; a background node's
    pid: int
    started: float  # seconds since the epoch, by a clock that may be set anew while the process runs
    port: int  # 0 where it listens on none
    log: str
    birth: str = ""  # its start in a form that no clock changes, where the system tells one
    role: str = ""  # a background node's: order, publisher, or a downstream
    log_start: int = 0  # bytes that others before it wrote to where its output goes
