"""The layout of the screen: its style sheet, its smallest size, and the lines that each part gets."""

WIDTH, HEIGHT = 80, 24
# Lines that are always needed: the title, the keys, and the counters and partitions without downstreams.
_FIXED = 7
_FEWEST_PROCESSES, _FEWEST_EVENTS = 4, 2

CSS = """
Screen { overflow: hidden; }
Static { height: auto; }
#title, #keys { text-style: reverse; }
Screen.log #counters, Screen.log #partitions { display: none; }
#processes { height: auto; max-height: 50%; scrollbar-size: 1 1; }
#events { height: 1fr; }
#small { display: none; }
Screen.small > * { display: none; }
Screen.small > #small { display: block; }
DataTable > .datatable--header { background: ansi_default; color: ansi_default; text-style: underline; }
DataTable > .datatable--cursor, DataTable:focus > .datatable--cursor {
    background: ansi_default; color: ansi_default; text-style: reverse;
}
"""


def room(height: int, downstreams: int, *, log: bool) -> tuple[int, int]:
    """Return how many downstreams are shown, and how many lines the table of processes has at most.

    `height`: the screen's lines. `log`: the log takes the place of counters and partitions.
    """
    # A downstream has a line among the counters, and one among the partitions.
    most = max(1, (height - _FIXED - _FEWEST_PROCESSES - _FEWEST_EVENTS) // 2)
    left = height - _FIXED - 2 * min(downstreams, most) - 1
    return most, height // 2 if log else min(height // 2, left)
