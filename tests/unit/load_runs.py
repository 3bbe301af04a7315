"""Runs a load that has an end."""

import threading

from brewctl.lab.load.load import Load, LoadCall


def run(load: Load, stop: threading.Event | None = None) -> None:
    """Run a load that should end; one that doesn't is stopped, and the test fails."""
    stop = stop or threading.Event()
    expired: list[str] = []

    def expire() -> None:
        expired.append("the load did not end")
        stop.set()

    guard = threading.Timer(120, expire)
    guard.start()
    try:
        load.run(stop)
    finally:
        guard.cancel()
    assert not expired


def number(call: LoadCall) -> int:
    return int(call.key.rpartition("-")[2])
