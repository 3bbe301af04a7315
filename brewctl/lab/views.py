"""How the demo looks: live in a terminal, lines in a pipe."""

import time
from collections import deque
from dataclasses import asdict

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
_SILENCE_S = 5.0


class PlainView:
    """One line at a time: what happens, and the counters where they changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._said_at = 0.0

    def tell(self, text: str) -> None:
        """Print a line."""
        self._console.out(text, highlight=False)

    def show(self, scene: Scene) -> None:
        """Print the counters twice a second while they change, every 5 s while they don't."""
        line, now = str(scene.counts), time.monotonic()
        pause_s = 0.5 if line != self._said else _SILENCE_S
        if now - self._said_at >= pause_s and scene.counts.orders:
            self.tell(line)
            self._said, self._said_at = line, now

    def finish(self, verdict: Verdict) -> None:
        """Print the distribution and the verdict."""
        self.tell(distribution_line(verdict.shares))
        for claim, holds, detail in verdict.checks:
            self.tell(f"{'ok  ' if holds else 'FAIL'} {claim}" + ("" if holds else f": {detail}"))
        self.tell(_closing(verdict))


class LiveView:
    """A screen that shows counters, nodes with their partitions, and what happens."""

    def __init__(self, console: Console, live: Live, *, height: int = 9) -> None:
        self._console = console
        self._live = live
        self._events: deque[str] = deque(maxlen=height)
        self._started = time.monotonic()
        self._scene: Scene | None = None

    def tell(self, text: str) -> None:
        """Add a line to the events."""
        self._events.append(f"{time.monotonic() - self._started:5.1f} s  {text}")
        self._refresh()

    def show(self, scene: Scene) -> None:
        """Show where everything stands."""
        self._scene = scene
        self._refresh()

    def finish(self, verdict: Verdict) -> None:
        """Leave the last screen, with the verdict below it."""
        self._live.update(self._screen(), refresh=True)
        self._live.stop()
        self._console.print(_verdict(verdict))

    def _refresh(self) -> None:
        self._live.update(self._screen())

    def _screen(self) -> Group:
        parts = []
        if self._scene:
            parts = [_counters(self._scene), _nodes(self._scene)]
        events = Text("\n".join(self._events), overflow="ellipsis", no_wrap=True)
        return Group(
            *parts, Panel(events, title="what happens", title_align="left", box=box.ROUNDED, border_style="dim")
        )


def _counters(scene: Scene) -> Panel:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(ratio=1)
    for name, value in asdict(scene.counts).items():
        done = value == (0 if name == "outbox_unpublished" else scene.orders)
        bar = ProgressBar(total=scene.orders, completed=value, complete_style="cyan", finished_style="green")
        grid.add_row(name.replace("_", " "), Text(str(value), style="green" if done else "cyan"), bar)
    return Panel(grid, title="Brew orders", title_align="left", box=box.ROUNDED, border_style="dim")


def _nodes(scene: Scene) -> Panel:
    table = Table(box=None, expand=True, padding=(0, 1))
    table.add_column("node", no_wrap=True)
    table.add_column("process", no_wrap=True)
    table.add_column("partitions, as Kafka has them", no_wrap=True)
    table.add_column("reserved", justify="right")
    owners = {member.client_id: member for member in scene.owners}
    for node, state in scene.nodes.items():
        shown = Text(state, style=_COLOURS[state])
        share = str(scene.shares.get(node, 0)) if node.startswith("inventory") else ""
        table.add_row(node, shown, _strip(owners.get(node), state), share)
    return Panel(table, title="nodes", title_align="left", box=box.ROUNDED, border_style="dim")


def _strip(member: Member | None, state: str) -> Text:
    strip = Text()
    for partition in range(PARTITIONS):
        if member and partition in member.partitions:
            strip.append(f" {partition} ", style="black on red" if state == "killed" else "black on green")
        else:
            strip.append(" · ", style="dim")
        strip.append(" ")
    if member and member.partitions and state == "killed":
        strip.append("waiting for its session to end", style="red")
    return strip


def _verdict(verdict: Verdict) -> Panel:
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
