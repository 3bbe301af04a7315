"""Draw the owner of each partition over time, and when that owner could not work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from brewctl.lab.record.history import Act, FaultSpan, Ownership
from brewctl.lab.report.geometry import text_width
from brewctl.lab.report.layout import Entry, Frame, Panel, at, legend
from brewctl.lab.report.markup import Markup, join, leaf, tag

_ROW = 15.0
_GAP = 2.0
_COLOURS = 8  # of nodes in chart.css; further nodes share them
_LABEL = 9.5


@dataclass(frozen=True)
class _Stretch:
    """A time in which a partition had one owner."""

    start_s: float
    end_s: float
    node: str


def hatches(key: str) -> Markup:
    """Define the hatched fills of partitions without an owner, or with an owner that can't work."""
    return tag("defs", *(_hatch(f"{key}-{name}", name) for name in ("nobody", "down")))


def _hatch(identifier: str, name: str) -> Markup:
    stroke = leaf("path", class_=f"hatch-{name}", d="M0 0V6")
    turn = "rotate(45)" if name == "nobody" else "rotate(-45)"
    return tag(
        "pattern", stroke, id=identifier, width=6, height=6, patternUnits="userSpaceOnUse", patternTransform=turn
    )


def strips(act: Act, frame: Frame) -> list[Panel]:
    """Draw a strip for each group, with its legend."""
    ordered = sorted(act.ownerships, key=lambda ownership: (ownership.group, ownership.at_s))
    nodes = sorted({node for ownership in ordered for node in ownership.owners.values() if node})
    colours = {node: f"node-{index % _COLOURS}" for index, node in enumerate(nodes)}
    drawn = (
        _Strip(group, list(looks), act.faults, frame, colours)
        for group, looks in groupby(ordered, key=lambda ownership: ownership.group)
    )
    return [panel for strip in drawn for panel in strip.panels()]


class _Strip:
    def __init__(
        self, group: str, looks: Sequence[Ownership], faults: Sequence[FaultSpan], frame: Frame, colours: dict[str, str]
    ) -> None:
        self._group = group
        self._faults = faults
        self._frame = frame
        self._colours = colours
        self._rows = {
            partition: _stretches(looks, partition, until_s=frame.time.values[1])
            for partition in sorted({partition for look in looks for partition in look.owners})
        }

    def panels(self) -> Iterator[Panel]:
        yield legend(list(self._entries()), self._frame, title=f"{self._group}: owner of each partition")
        rows = [at(0, index * _ROW, self._row(partition)) for index, partition in enumerate(self._rows)]
        yield Panel(len(rows) * _ROW + 10, join(rows))

    def _entries(self) -> Iterator[Entry]:
        stretches = [stretch for row in self._rows.values() for stretch in row]
        owners = sorted({stretch.node for stretch in stretches})
        for node in filter(None, owners):
            yield Entry(_swatch(self._colours[node]), node)
        if "" in owners:
            yield Entry(_swatch("nobody", self._fill("nobody")), "nobody")
        if down := next((stretch.node for stretch in stretches for _ in self._downs(stretch)), ""):
            swatch = join([_swatch(self._colours[down]), _swatch("down", self._fill("down"))])
            yield Entry(swatch, "owner can't work")

    def _row(self, partition: int) -> Markup:
        y = (_ROW + _LABEL) / 2 - 2
        name = tag("text", str(partition), class_="tick", x=self._frame.left - 7, y=y, text_anchor="end")
        return join([name, *(self._cell(partition, stretch) for stretch in self._rows[partition])])

    def _cell(self, partition: int, stretch: _Stretch) -> Markup:
        x, end = self._frame.time(stretch.start_s), self._frame.time(stretch.end_s)
        told = f"partition {partition}: {stretch.node or 'nobody'}, {stretch.start_s:.1f} to {stretch.end_s:.1f} s"
        parts = [tag("title", told), self._bar(stretch, self._colours.get(stretch.node, "nobody"), not stretch.node)]
        parts += [self._bar(down, "down", hatched=True) for down in self._downs(stretch)]
        if stretch.node and text_width(stretch.node, _LABEL) + 8 < end - x:
            parts.append(tag("text", stretch.node, class_="owner", x=x + 5, y=(_ROW + _LABEL) / 2 - 2.5))
        return tag("g", *parts)

    def _bar(self, stretch: _Stretch, style: str, hatched: bool) -> Markup:
        x, end = self._frame.time(stretch.start_s), self._frame.time(stretch.end_s)
        fill = self._fill(style) if hatched else None
        return leaf("rect", class_=f"cell {style}", x=x, y=0.0, width=end - x, height=_ROW - _GAP, fill=fill)

    def _fill(self, name: str) -> str:
        return f"url(#{self._frame.key}-{name})"

    def _downs(self, stretch: _Stretch) -> Iterator[_Stretch]:
        """Yield the times within a stretch in which its owner could not work."""
        for fault in self._faults:
            start_s, end_s = max(fault.start_s, stretch.start_s), min(fault.end_s, stretch.end_s)
            if stretch.node in fault.nodes and start_s < end_s:
                yield _Stretch(start_s, end_s, stretch.node)


def _swatch(style: str, fill: str | None = None) -> Markup:
    return leaf("rect", class_=f"cell {style}", x=4, y=-6, width=16, height=12, fill=fill)


def _stretches(looks: Sequence[Ownership], partition: int, *, until_s: float) -> list[_Stretch]:
    changes = [(next(same).at_s, node) for node, same in groupby(looks, lambda look: look.owners.get(partition, ""))]
    ends = [*(start_s for start_s, _ in changes[1:]), until_s]
    return [_Stretch(start_s, end_s, node) for (start_s, node), end_s in zip(changes, ends, strict=True)]
