"""How the demo looks: live in a terminal, lines in a pipe."""

import os
import time
from collections import deque
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from brewctl.delivery.broker import PARTITIONS, Member
from brewctl.lab.demo import Scene, Verdict
from brewctl.overview import distribution_line

_COLOURS = {"runs": "green", "killed": "bold red", "stopped": "dim"}
_VERBS = {"order": "published", "inventory": "reserved", "notification": "notified"}
_SILENCE_S = 5.0
# Lines of the screen that are not events, also where the terminal has 24.
_OTHER_LINES = 17


class Screen:
    """What there is to see, kept so that it can be drawn; also the view that shows nothing."""

    def __init__(self, *, events: int = 10) -> None:
        self._events: deque[str] = deque(maxlen=events)
        self._started = time.monotonic()
        self._scene: Scene | None = None
        self._plateau: Group | None = None

    def tell(self, text: str) -> None:
        """Add a line to the events."""
        self._events.append(f"{time.monotonic() - self._started:5.1f} s  {text}")

    def show(self, scene: Scene) -> None:
        """Show where everything stands."""
        self._scene = scene
        if any(scene.nodes.get(member.client_id) == "killed" and member.partitions for member in scene.owners):
            self._plateau = self.draw()

    def draw(self) -> Group:
        """Draw it as it is now."""
        parts = [_counters(self._scene), _nodes(self._scene)] if self._scene else []
        events = Text("\n".join(self._events), overflow="ellipsis", no_wrap=True)
        return Group(
            *parts, Panel(events, title="what happens", title_align="left", box=box.ROUNDED, border_style="dim")
        )

    def save(self, verdict: Verdict, path: Path) -> None:
        """Write an SVG: the last look at the plateau, before the survivor took over, and the verdict."""
        with Path(os.devnull).open("w") as nowhere:
            console = Console(record=True, width=80, file=nowhere, force_terminal=True)
            console.print(self._plateau or self.draw())
            console.print(draw_verdict(verdict))
        console.save_svg(str(path), title="brewctl demo")


class PlainView(Screen):
    """One line at a time: what happens, and the counters where they changed."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._said = ""
        self._said_at = 0.0

    def tell(self, text: str) -> None:
        """Print a line."""
        super().tell(text)
        self._console.out(text, highlight=False)

    def show(self, scene: Scene) -> None:
        """Print the counters twice a second while they change, every 5 s while they don't."""
        super().show(scene)
        line, now = str(scene.counts), time.monotonic()
        pause_s = 0.5 if line != self._said else _SILENCE_S
        if now - self._said_at >= pause_s and scene.counts.orders:
            self._console.out(line, highlight=False)
            self._said, self._said_at = line, now

    def finish(self, verdict: Verdict) -> None:
        """Print the distribution and the verdict."""
        lines = [distribution_line(verdict.shares)]
        for claim, holds, detail in verdict.checks:
            lines.append(f"ok   {claim}" if holds else f"FAIL {claim}: {detail}")
        for line in (*lines, _closing(verdict)):
            self._console.out(line, highlight=False)


class LiveView(Screen):
    """A screen that shows counters, nodes with their partitions, and what happens."""

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(events=max(3, min(10, console.height - _OTHER_LINES)))
        self._console = console
        self._live = live

    def tell(self, text: str) -> None:
        """Add a line to the events."""
        super().tell(text)
        self._live.update(self.draw())

    def show(self, scene: Scene) -> None:
        """Show where everything stands."""
        super().show(scene)
        self._live.update(self.draw())

    def finish(self, verdict: Verdict) -> None:
        """Leave the last screen, with the verdict below it."""
        self._live.update(self.draw(), refresh=True)
        self._live.stop()
        self._console.print(draw_verdict(verdict))


def _counters(scene: Scene) -> Panel:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(ratio=1)
    for name, value in scene.counts.story().items():
        done = value == (0 if name == "outbox_unpublished" else scene.orders)
        bar = ProgressBar(total=scene.orders, completed=value, complete_style="cyan", finished_style="green")
        grid.add_row(name.replace("_", " "), Text(str(value), style="green" if done else "cyan"), bar)
    return Panel(grid, title="Brew orders", title_align="left", box=box.ROUNDED, border_style="dim")


def _nodes(scene: Scene) -> Panel:
    table = Table(box=None, expand=True, padding=(0, 1))
    table.add_column("node", min_width=14, no_wrap=True)
    table.add_column("process", min_width=7, no_wrap=True)
    table.add_column("partitions, as Kafka has them", ratio=1, no_wrap=True)
    table.add_column("done", justify="right", no_wrap=True)
    owners = {member.client_id: member for member in scene.owners}
    for node, state in scene.nodes.items():
        owner = owners.get(node)
        verb = next(verb for role, verb in _VERBS.items() if node.startswith(role))
        strip = Text() if node.startswith("order") else _strip(owner, state)
        table.add_row(node, Text(state, style=_COLOURS[state]), strip, f"{scene.work.get(node, 0)} {verb}")
    return Panel(table, title="nodes", title_align="left", box=box.ROUNDED, border_style="dim")


def _strip(member: Member | None, state: str) -> Text:
    """Draw who owns what; a killed owner keeps its partitions until Kafka misses its heartbeat."""
    strip = Text()
    for partition in range(PARTITIONS):
        if member and partition in member.partitions:
            strip.append(f" {partition} ", style="black on red" if state == "killed" else "black on green")
        else:
            strip.append(" · ", style="dim")
    if member and member.partitions and state == "killed":
        strip.append(" no heartbeat", style="red")
    return strip


def draw_verdict(verdict: Verdict) -> Panel:
    """Draw the checks, the distribution and how it ended."""
    lines = Text()
    for claim, holds, detail in verdict.checks:
        lines.append("✔ " if holds else "✘ ", style="green" if holds else "bold red")
        lines.append(claim if holds else f"{claim}: {detail}")
        lines.append("\n")
    lines.append(distribution_line(verdict.shares) + "\n", style="cyan")
    lines.append(_closing(verdict), style="bold green" if verdict.ok else "bold red")
    return Panel(
        lines, title="verdict", title_align="left", box=box.ROUNDED, border_style="green" if verdict.ok else "red"
    )


def _closing(verdict: Verdict) -> str:
    pause = f"; the longest pause in reservations was {verdict.seconds_without_progress:.1f} s"
    return f"verdict: {'nothing was lost, nothing happened twice' if verdict.ok else 'FAILED'}{pause}"
