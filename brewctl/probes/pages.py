"""What a page of an HTTP endpoint says. Apart from the server, which only those import that serve."""

from collections.abc import Callable
from typing import NamedTuple

TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """A page, as it is now."""

    status: int
    content_type: str
    body: bytes


Page = Callable[[], Answer]
