"""The screen of `top`: counters, processes, partitions and events, and the keys that act on the selected process.

┌ counters with rates and sparklines
│ processes: replicas, brokers, PostgreSQL; one of them is selected
│ partitions of each group: owner, lag, since when
│ what happened
└ keys
"""

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.pilot import Pilot
from textual.widgets import Static

from brewctl.errors import BrewError, ExitCode
from brewctl.lab import look
from brewctl.lab.play.nodes import Role
from brewctl.lab.top import changes, keys, layout, panels
from brewctl.lab.top.controls import Controls, LoadControl
from brewctl.lab.top.jobs import Jobs
from brewctl.lab.top.layout import HEIGHT, WIDTH
from brewctl.lab.top.observer import EVERY_S, Observer
from brewctl.lab.top.process_table import ProcessTable
from brewctl.lab.top.rates import Rates
from brewctl.lab.top.snapshot import Process, Snapshot
from brewctl.security import PLAINTEXT, OrderSecurity

_EVENTS = 200


class Top(App[None]):
    """Shows an observer's snapshot every second. Without controls its keys can change nothing."""

    ENABLE_COMMAND_PALETTE = False
    CSS = layout.CSS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit"),
        Binding("ctrl+c", "interrupt", priority=True),
        Binding("l", "load"),
        Binding("plus,equals_sign", "rate(1)"),
        Binding("minus", "rate(-1)"),
        Binding("t", "terminate"),
        Binding("k", "kill"),
        Binding("p", "pause"),
        Binding("r", "restart"),
        Binding("e", "log"),
    ]

    def __init__(
        self,
        observer: Observer,
        controls: Controls | None,
        *,
        where: str,
        adds: Mapping[str, Role] | None = None,
        security: OrderSecurity = PLAINTEXT,
    ) -> None:
        """Make the screen. `adds`: the role of which each key adds a node."""
        super().__init__(ansi_color=True)
        self._adds = adds or {}
        for key in self._adds:
            self.bind(key, f"add('{key}')")
        self._observer = observer
        self._controls = controls
        self._where = where
        self._load = LoadControl(self._tell, security)
        self._jobs = Jobs(self._tell)
        self._killed: dict[str, int | None] = {}  # the pid of each process that a key has killed, by its name
        self._rates = Rates()
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._table = ProcessTable()
        self.snapshot = Snapshot(time.monotonic())
        self.failure: Exception | None = None  # the unexpected error that has ended the screen

    def compose(self) -> ComposeResult:
        """Yield the parts of the screen, from top to bottom."""
        yield Static(id="small")
        yield Static(id="title")
        yield Static(id="counters")
        yield self._table
        yield Static(id="partitions")
        yield Static(id="events")
        yield Static(id="keys")

    def on_mount(self) -> None:
        """Show the first snapshot, then a new one every second."""
        self.theme = "ansi-dark"  # the terminal's own colours, light or dark
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.action_interrupt)
        self._table.focus()
        with self._guarded():
            self.snapshot = self._observer.look()
            self._rates.add(self.snapshot)
            self._show()
        self.set_interval(EVERY_S, self._look)

    def on_unmount(self) -> None:
        """Stop the load."""
        self._load.stop()

    def on_resize(self, event: Resize) -> None:
        """Show only a message while the terminal is too small."""
        size = event.size
        small = size.width < WIDTH or size.height < HEIGHT
        self.screen.set_class(small, "small")
        self.query_one("#small", Static).update(
            f"top needs {WIDTH} x {HEIGHT}, this is {size.width} x {size.height}: make it larger"
        )
        if not small:
            with self._guarded():
                self._show()

    def run_for_picture(self, *, after_s: float) -> str:
        """Run without a terminal for `after_s` seconds, and return the screen as an SVG; "" if it ended before."""
        drawn = ""

        def draw() -> None:
            nonlocal drawn
            drawn = self.export_screenshot(title="brewctl top")
            self.exit()

        async def wait(pilot: Pilot[object]) -> None:
            pilot.app.set_timer(after_s, draw)

        self.run(headless=True, size=(WIDTH, HEIGHT), auto_pilot=wait)
        return drawn

    def finish(self) -> Iterator[str]:
        """Wait for restarts and for the load's last answers; yield lines about them. Call it after `run`."""
        last = ["the last answers"] if self._load.answering else []
        if waits := [*self._jobs.running, *last]:
            yield f"waiting for {', '.join(waits)}"
        self._jobs.wait()
        if told := self._load.finish():
            yield told

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """End the screen after an unexpected error, which Textual would print as a traceback."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised once the terminal is restored
            self.failure = error
            self.exit(return_code=ExitCode.FAILED)

    def _look(self) -> None:
        if not self.is_running:  # the screen is closing, and its parts no longer exist
            return
        with self._guarded():
            if self._jobs.failure:
                raise self._jobs.failure
            before, seen = self.snapshot, self._observer.look()
            pids = {process.name: process.pid for process in seen.processes}
            self._killed = {name: pid for name, pid in self._killed.items() if pids.get(name) in {pid, None}}
            self.snapshot = seen.with_killed(self._killed)
            self._rates.add(self.snapshot)
            for text in changes.between(before, self.snapshot):
                self._tell(text)
            self._load.follow(self.snapshot.addresses)
            self._show()

    def _show(self) -> None:
        snapshot, width = self.snapshot, self.size.width
        most, table_lines = layout.room(self.size.height, len(snapshot.downstreams), log=self.screen.has_class("log"))
        self._table.styles.max_height = table_lines
        colours = look.colours(process.name for process in snapshot.processes if process.row)
        self.query_one("#title", Static).update(self._title())
        said = keys.line(self._adds) if self._controls else keys.ELSEWHERE
        self.query_one("#keys", Static).update(f"{said:<{width}}")
        self.query_one("#counters", Static).update(panels.counters(snapshot, self._rates, width, most=most))
        self._table.show(snapshot.processes, colours)
        self.query_one("#partitions", Static).update(panels.partitions(snapshot, colours, width, most=most))
        events = self.query_one("#events", Static)
        events.update(panels.events(list(self._events), events.size.height, width))

    def _title(self) -> str:
        left, right = f"brewctl top  {self._where}", f"{self._load}  {time.strftime('%H:%M:%S')}"
        room = self.size.width - len(right) - 1
        return f"{left[:room]:<{room}} {right}"

    def _tell(self, text: str) -> None:
        """Add a line to the event log, from any thread; the next look shows it."""
        self._events.append(f"{time.strftime('%H:%M:%S')}  {text}")

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable the keys that act on processes where the servers are not the sandbox's."""
        acts = {"load", "rate", "add", "terminate", "kill", "pause", "restart"}
        return super().check_action(action, parameters) and (action not in acts or self._controls is not None)

    async def run_action(self, *arguments: Any, **named: Any) -> bool:
        """Run a key's action."""
        with self._guarded():
            return await super().run_action(*arguments, **named)
        return True

    def action_interrupt(self) -> None:
        """End with the exit code of an interrupted command."""
        self.exit(return_code=ExitCode.INTERRUPTED)

    def action_log(self) -> None:
        """Show the event log in place of counters and partitions, or show those again."""
        self.screen.toggle_class("log")
        self.call_after_refresh(self._show)

    def action_load(self) -> None:
        """Start the load, or stop it."""
        if self._load.wanted:
            self._load.stop()
            self._tell("load stopped")
        elif addresses := self.snapshot.addresses:
            self._load.start(addresses)
        else:
            self._tell("no order-service runs: press o to add one")
        self._show()

    def action_rate(self, direction: int) -> None:
        """Change the rate of the load."""
        self._load.step(direction)
        self._tell(f"load: {self._load.rate} orders a second{'' if self._load.wanted else ', once it runs'}")
        self._show()

    def action_add(self, key: str) -> None:
        """Start another node of a key's role."""
        role = self._adds[key]
        self._begin(role.name, f"another node of {role.name} starts", lambda controls: controls.start(role))

    def action_terminate(self) -> None:
        """Send SIGTERM to the selected process."""
        self._send(signal.SIGTERM, "SIGTERM")

    def action_kill(self) -> None:
        """Send SIGKILL to the selected process."""
        self._send(signal.SIGKILL, "kill -9")

    def action_pause(self) -> None:
        """Pause the selected process, or resume it."""
        process = self.snapshot.process(self._table.selected)
        if process and process.state == "paused":
            self._send(signal.SIGCONT, "SIGCONT")
        else:
            self._send(signal.SIGSTOP, "SIGSTOP")

    def action_restart(self) -> None:
        """End the selected process, if it runs, and start it again."""
        if process := self._selected():
            self._begin(process.name, f"{process.name} is restarted", lambda controls: controls.restart(process))

    def _send(self, number: signal.Signals, name: str) -> None:
        process, controls = self._selected(), self._controls
        if not (process and controls):
            return
        try:
            controls.send(process, number)
        except BrewError as error:
            self._tell(str(error))
        else:
            self._tell(f"{name} to {process.name} ({process.pid})")
            if number is signal.SIGKILL:
                self._killed[process.name] = process.pid
        self._show()

    def _selected(self) -> Process | None:
        process = self.snapshot.process(self._table.selected)
        if process and not process.ours:
            self._tell(f"{process.name} was not started by `brewctl start`: it is left alone")
            self._show()
            return None
        return process

    def _begin(self, name: str, what: str, do: Callable[[Controls], object]) -> None:
        controls = self._controls
        if controls and self._jobs.begin(name, lambda: do(controls)):
            self._tell(what)
        else:
            self._tell(f"{name}: the last action is not finished")
        self._show()
