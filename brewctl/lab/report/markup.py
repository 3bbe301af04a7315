"""Write HTML and SVG. Text that is not Markup is escaped."""

import html
import re
from collections.abc import Iterable

# Characters that XML or UTF-8 does not allow: terminal escapes, NUL, undecodable bytes of a node's output.
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Value = str | float
Child = Markup | str


def tag(name: str, /, *children: Child, **attributes: Value | None) -> Markup:
    """Return an element with its end tag. `class_` means class, `stroke_width` stroke-width; None is left out."""
    return Markup(f"<{name}{_written(attributes)}>{join(children)}</{name}>")


def leaf(name: str, /, **attributes: Value | None) -> Markup:
    """Return an element without children: an SVG shape, or a void HTML element."""
    return Markup(f"<{name}{_written(attributes)}/>")


def join(children: Iterable[Child], separator: str = "") -> Markup:
    """Join children; text is escaped."""
    return Markup(separator.join(child if isinstance(child, Markup) else escape(child) for child in children))


def escape(text: str) -> Markup:
    """Escape a text for an element or an attribute."""
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", text)))


def number(value: float) -> str:
    """Format a coordinate, rounded to a tenth of a pixel."""
    return f"{round(value, 1) + 0:g}"  # + 0: never -0


def _written(attributes: dict[str, Value | None]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
