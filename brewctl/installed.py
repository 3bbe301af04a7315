"""Checks that an installed library has the private names that brewctl uses, which its releases do not promise.

    NAMES = {"module": ("name",), "module:Class": ("_method", "_attribute")}

Each package that uses such names lists them, and calls `require` when it is imported. So a release that lacks one ends
a role at its start, and not in the middle of its work.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module, metadata

from brewctl.errors import BrewError


def require(library: str, names: Mapping[str, Iterable[str]]) -> None:
    """Raise BrewError if `library`, a name for pip, lacks one of these names. Imports its modules."""
    if not (lacking := missing(names)):
        return
    wanted = next(each for each in metadata.requires("brewctl") or [] if each.startswith(library))
    installed = f"{library} {metadata.version(library)}"
    hint = f"pip install '{wanted.partition(';')[0].strip()}'"
    raise BrewError(f"{installed} has no {lacking[0]}, which brewctl uses", hint=hint)


def missing(names: Mapping[str, Iterable[str]]) -> list[str]:
    """Return those of these names that do not exist."""
    return [
        f"{owner.replace(':', '.')}.{name}"
        for owner, wanted in names.items()
        for known in [_names(owner)]
        for name in wanted
        if name not in known
    ]


def _names(owner: str) -> set[str]:
    """Return the names in a module or class, with those in its constructors; nothing if it does not exist."""
    module, _, inside = owner.partition(":")
    try:
        found = import_module(module)
        if not inside:
            return set(dir(found))
        kind: type = getattr(found, inside)
    except (ImportError, AttributeError):
        return set()
    constructors = [getattr(vars(base).get("__init__"), "__code__", None) for base in kind.__mro__]
    return set(dir(kind)).union(*(code.co_names for code in constructors if code))
