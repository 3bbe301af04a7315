"""The table of processes. The selected one stays selected while others come and go."""

from collections.abc import Mapping, Sequence
from typing import Any

from textual.widgets import DataTable

from brewctl.lab.top import panels
from brewctl.lab.top.snapshot import Process

# The columns' widths with padding. The last column takes the rest, up to the scroll bar.
_COLUMNS = {"name": 17, "    pid": 9, "state": 10}


class ProcessTable(DataTable[Any]):
    """A row for each process."""

    def __init__(self) -> None:
        super().__init__(id="processes", cursor_type="row", cell_padding=0)
        self._names: list[str] = []  # of the processes, by row

    def on_mount(self) -> None:
        """Add the columns."""
        for name, width in _COLUMNS.items():
            self.add_column(name, key=name, width=width)
        self.add_column("what it does", key="what")

    @property
    def selected(self) -> str:
        """The name of the selected process, or ""."""
        return self._names[self.cursor_row] if 0 <= self.cursor_row < len(self._names) else ""

    def show(self, processes: Sequence[Process], colours: Mapping[str, str]) -> None:
        """Show these processes; nodes in their colours, by name."""
        names = [process.name for process in processes]
        if names != self._names:
            selected = self.selected
            self.clear()
            for name in names:
                self.add_row(*[""] * len(self.columns), key=name)
            self._names = names
            if selected in names:
                self.move_cursor(row=names.index(selected))
        widths = [width - 1 for width in _COLUMNS.values()]
        widths.append(self.app.size.width - sum(_COLUMNS.values()) - 1)
        for process in processes:
            cells = panels.process(process, colours.get(process.name, ""), widths)
            for column, cell in zip(self.columns, cells, strict=True):
                self.update_cell(process.name, column, cell, update_width=column.value == "what")
