"""The pages of an HTTP endpoint. Apart from the server, so that a process without one does not import it."""

from collections.abc import Callable
from typing import NamedTuple

TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """A rendered page."""

    status: int
    content_type: str
    body: bytes


Page = Callable[[], Answer]
