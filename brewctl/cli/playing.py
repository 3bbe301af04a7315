"""Run one replica of a role in the foreground: its log, signals, wait for servers, and health pages."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brewctl import config
from brewctl.cli import options, output
from brewctl.errors import BrewError

if TYPE_CHECKING:
    from brewctl.probes.endpoint import Address
    from brewctl.probes.health import Health

    Run = Callable[[str, threading.Event, Health], None]


@dataclass(frozen=True)
class Play:
    """The options that all roles share. `http`: address of the health pages, or ""; `wait_s`: wait for servers."""

    node: str
    log_format: config.LogFormat
    http: str
    wait_s: float

    def named(self, default: str) -> str:
        """Return the node's name; if none was given, `default` with the pid."""
        return self.node or f"{default[: options.NODE_CHARACTERS - 8]}-{os.getpid()}"

    @property
    def where(self) -> "Address | None":
        """The address of the health pages, or None. Raises UsageError for a malformed one."""
        if not self.http:
            return None
        from brewctl.probes import endpoint

        return endpoint.address(self.http)

    def role(self, role: str, node: str, run: "Run", *, is_worker: bool = False, leaves: bool = True) -> None:
        """Run a role, with its health pages, until a signal.

        If it can't start, it is retried for `wait_s` seconds. `leaves`: a stop ends the process.
        """
        from brewctl import waiting

        where = self.where

        def observed(stop: threading.Event) -> None:
            from brewctl import tracing
            from brewctl.roles import observing

            if is_worker:
                shown = observing.observed_worker(stop, node=node, role=role)
            else:
                shown = observing.observed(where, stop, node=node, role=role)
            with tracing.kept("order-service" if role == "order" else role, node=node), shown as health:

                def tell(error: BrewError) -> None:
                    waiting.log_it(error)
                    health.waits(error.message)

                waiting.start(lambda: run(node, stop, health), self.wait_s, stop, leaves=leaves, tell=tell)

        self.until_stopped(node, observed)

    def until_stopped(
        self, node: str, run: Callable[[threading.Event], None], *, last: Callable[[], None] = lambda: None
    ) -> None:
        """Call `run` with an event that a signal sets. `last` is called before a second signal ends the process."""
        from brewctl import lifecycle, log, signals

        log.configure(node=node, as_json=self.log_format is config.LogFormat.JSON, verbose=output.verbose)
        lifecycle.collect_garbage_rarely()
        with signals.stop_on_signals(last) as stop:
            run(stop)
