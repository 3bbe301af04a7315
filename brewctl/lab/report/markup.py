"""HTML and SVG as text that can't be broken out of: what is not Markup is escaped."""

import html
import re
from collections.abc import Iterable

# Allowed in neither XML nor UTF-8: terminal escapes, NUL, undecodable bytes of a node's output.
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Value = str | float
Child = Markup | str


def tag(name: str, /, *children: Child, **attributes: Value | None) -> Markup:
    """Write an element with its end tag. `class_` is class, `stroke_width` is stroke-width; None leaves one out."""
    return Markup(f"<{name}{_written(attributes)}>{join(children)}</{name}>")


def leaf(name: str, /, **attributes: Value | None) -> Markup:
    """Write an element that has no children: a shape of SVG, a void element of HTML."""
    return Markup(f"<{name}{_written(attributes)}/>")


def join(children: Iterable[Child], separator: str = "") -> Markup:
    """Write them one after another, escaped where they are text."""
    return Markup(separator.join(child if isinstance(child, Markup) else escape(child) for child in children))


def escape(text: str) -> Markup:
    """Make any text fit for an element or an attribute."""
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", text)))


def number(value: float) -> str:
    """Write a coordinate to a tenth of a pixel, as short as it goes."""
    return f"{round(value, 1) + 0:g}"  # + 0: never -0


def _written(attributes: dict[str, Value | None]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
