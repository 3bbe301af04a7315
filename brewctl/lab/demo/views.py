"""The demo's views: live in a terminal, lines in a pipe, and a picture of the terminal."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from brewctl import stdout
from brewctl.delivery.broker import PARTITIONS
from brewctl.lab import look, report
from brewctl.lab.demo import text_chart
from brewctl.lab.demo.play import DemoVerdict
from brewctl.lab.demo.recorder import Scene
from brewctl.lab.record.history import Act
from brewctl.overview import distribution_line

_VERBS = {"order": "published", "inventory": "reserved", "notification": "notified"}
_SILENCE_S = 5.0
_SAID = 3  # lines of narration that are shown
_EVENTS = 50
# The usual size of a terminal, and the lines of the screen that are not events.
_WIDTH, _HEIGHT = 80, 24
_OTHER_LINES = 18
# The chart is shown if this many lines are left for events.
_FEW_EVENTS = 6


class Screen:
    """Keeps the state of the demo and draws it; a view that shows nothing by itself."""

    def __init__(self) -> None:
        self._title = ""
        self._prompt = ""
        self._said: deque[str] = deque(maxlen=_SAID)
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._began = time.monotonic()
        self._scene: Scene | None = None
        self._plateau: Group | None = None

    def begin(self, title: str) -> None:
        """Begin an act, and remove the narration of the last one."""
        self._title, self._prompt = title, ""
        self._said.clear()
        self._happened(title)

    def say(self, text: str) -> None:
        """Add a narration."""
        self._said.append(text)
        self._happened(text)

    def tell(self, line: str) -> None:
        """Add a node's line to the events."""
        self._happened(line)

    def ask(self, text: str) -> None:
        """Show what a key does."""
        self._prompt = text

    def show(self, scene: Scene) -> None:
        """Keep the present state; also a drawing of the time before the rebalance."""
        self._scene = scene
        if any(scene.states.get(member.client_id) == "killed" and member.partitions for member in scene.owners):
            self._plateau = self.draw()

    def _happened(self, text: str) -> None:
        self._events.append(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def draw(self, width: int = _WIDTH, height: int = _HEIGHT) -> Group:
        """Draw the present state for a terminal of this size, with one line left for the cursor."""
        parts: list[RenderableType] = [self._narration()]
        if self._scene:
            parts += [_heading("Brew orders"), _counters(self._scene), _nodes(self._scene)]
            if _shows_chart(height):
                parts.append(text_chart.draw(self._scene.record, width))
        shown = [*self._events][-_room(height) :]
        return Group(*parts, _heading("what happens"), Text("\n".join(shown), overflow="ellipsis", no_wrap=True))

    def _narration(self) -> Panel:
        said = Text(overflow="ellipsis", no_wrap=True)
        *before, newest = [*self._said] or [""]
        for line in before:
            said.append(f"{line}\n")
        said.append(newest + "\n" * (_SAID - 1 - len(before)), style="bold")
        return Panel(
            said,
            title=Text(self._title, style="bold"),
            title_align="left",
            subtitle=Text(self._prompt, style="bold reverse"),
            subtitle_align="right",
            box=box.ROUNDED,
            border_style="cyan",
        )

    def save(self, verdict: DemoVerdict, path: Path) -> None:
        """Write an SVG of the last state before the rebalance, and of the verdict.

        Raises BrewError if the file can't be written.
        """
        console = Console(record=True, width=_WIDTH, file=StringIO(), force_terminal=True, no_color=False)
        console.print(self._plateau or self.draw())
        console.print(_judged(verdict))
        report.write_terminal(path, console.export_svg(title="brewctl demo"))


class PlainView(Screen):
    """Prints events and changed counters, a line each."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = ""
        self._counted_at = 0.0

    def shown(self) -> AbstractContextManager[None]:
        """Return a context that does nothing, as lines are printed at once."""
        return nullcontext()

    def ask(self, text: str) -> None:
        """Print what a key does."""
        super().ask(text)
        stdout.put(text)

    def show(self, scene: Scene) -> None:
        """Print the counters: twice a second while they change, else every 5 s."""
        super().show(scene)
        line, now = str(scene.counts), time.monotonic()
        pause_s = 0.5 if line != self._counted else _SILENCE_S
        if now - self._counted_at >= pause_s and scene.counts.orders:
            stdout.put(line)
            self._counted, self._counted_at = line, now

    def finish(self, verdict: DemoVerdict, act: Act) -> None:
        """Print the chart, the distribution and the verdict."""
        stdout.put(text_chart.draw(act, _WIDTH).plain)
        stdout.put(distribution_line(verdict.shares))
        for claim in verdict.claims:
            stdout.put(f"ok   {claim.text}" if claim.holds else f"FAIL {claim.text}: {claim.found}")
        stdout.put(_closing(verdict))

    def _happened(self, text: str) -> None:
        super()._happened(text)
        stdout.put(text)


class LiveView(Screen):
    """Shows the narration, counters, nodes with their partitions, and the last events on one screen."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def shown(self) -> Live:
        """Show the screen while the block runs. The last state stays on the terminal."""
        return Live(get_renderable=lambda: self.draw(*self._console.size), console=self._console, refresh_per_second=8)

    def finish(self, verdict: DemoVerdict, act: Act) -> None:
        """Print the chart and the verdict below the last screen."""
        if not _shows_chart(self._console.height):
            self._console.print(text_chart.draw(act, self._console.width))
        self._console.print(_judged(verdict))


def _shows_chart(height: int) -> bool:
    return height - _OTHER_LINES >= text_chart.HEIGHT + _FEW_EVENTS


def _room(height: int) -> int:
    """Return how many events fit on the screen."""
    return max(3, height - _OTHER_LINES - (text_chart.HEIGHT if _shows_chart(height) else 0))


def _heading(text: str) -> Rule:
    return Rule(Text(text, style="bold"), align="left", style="dim")


def _counters(scene: Scene) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(ratio=1)
    for name, value in scene.counts.story().items():
        done = value == (0 if name == "outbox_unpublished" else scene.orders)
        bar = ProgressBar(
            total=scene.orders, completed=value or 0, style="dim", complete_style="cyan", finished_style="green"
        )
        grid.add_row(name.replace("_", " "), Text(str(value), style="bold green" if done else "bold cyan"), bar)
    return grid


def _nodes(scene: Scene) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("node", "pid", "process"):
        table.add_column(name, no_wrap=True)
    table.add_column("partitions, as Kafka has them", ratio=1, no_wrap=True)
    table.add_column("done", justify="right", no_wrap=True)
    owners = {member.client_id: member for member in scene.owners}
    colours = look.colours(scene.states)
    for node, state in scene.states.items():
        strip = Text()
        if not node.startswith("order"):
            # A killed node owns its partitions until its session timeout.
            owned, killed = owners[node].partitions if node in owners else (), state == "killed"
            strip = look.strip(range(PARTITIONS), owned, colour=colours[node], quiet=killed)
            strip.append("no heartbeat" if owned and killed else "", style="red")
        verb = next(verb for role, verb in _VERBS.items() if node.startswith(role))
        done = f"{scene.work.get(node, 0)} {verb}"
        table.add_row(node, str(scene.pids[node]), look.state(state), strip, done)
    return table


def _judged(verdict: DemoVerdict) -> Panel:
    """Draw the claims, the distribution and the verdict."""
    lines = Text()
    for claim in verdict.claims:
        lines.append("✔ " if claim.holds else "✘ ", style="green" if claim.holds else "bold red")
        lines.append(claim.text if claim.holds else f"{claim.text}: {claim.found}")
        lines.append("\n")
    lines.append(distribution_line(verdict.shares) + "\n", style="cyan")
    lines.append(_closing(verdict), style="bold green" if verdict.ok else "bold red")
    return Panel(
        lines, title="verdict", title_align="left", box=box.ROUNDED, border_style="green" if verdict.ok else "red"
    )


def _closing(verdict: DemoVerdict) -> str:
    pause = f"; the longest pause in reservations was {verdict.longest_pause_s:.1f} s"
    return f"verdict: {'nothing was lost, nothing happened twice' if verdict.ok else 'FAILED'}{pause}"
