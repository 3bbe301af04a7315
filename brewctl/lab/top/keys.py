"""The keys of `top`: its own, and one for each role of which it can add a node."""

from collections.abc import Mapping

from brewctl.config import Settings, short_name
from brewctl.delivery import registry
from brewctl.lab.play import nodes
from brewctl.lab.play.nodes import Role

ELSEWHERE = "q quit  e log"
_OWN = frozenset("qltkpre")
_DIGITS = "123456789"
_WIDTH = 80


def adding(settings: Settings) -> dict[str, Role]:
    """Return the keys that add a node, with their roles: order, and the downstreams of the settings.

    A downstream's key is the first letter of its group that is free, else a free digit. Further downstreams have none.
    """
    found = {"o": nodes.ROLES["order"]}
    for full, downstream in zip(settings.downstreams, registry.configured(settings), strict=True):
        letters = [letter for letter in downstream.group.lower() if letter.isascii() and letter.isalpha()]
        free = (key for key in (*letters, *_DIGITS) if key not in found and key not in _OWN)
        if key := next(free, ""):
            found[key] = nodes.role(short_name(full), downstream)
    return found


def line(adds: Mapping[str, Role]) -> str:
    """Return the help line for the keys; it fits into 80 columns if there are few downstreams."""
    add = f"{'/'.join(adds)} add"
    said = f"q quit  l load  +- rate  {add}  t term  k kill -9  p pause  r restart  e log"
    return said if len(said) <= _WIDTH else f"q quit l load +- rate {add} t term k kill p pause r restart e log"
