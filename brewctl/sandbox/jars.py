"""Kafka's jars: downloaded once by jgo, checked against jars.lock, shared by all sandboxes.

jgo trusts what it finds on disk and only warns of a wrong checksum, so every file is hashed before it is used.
"""

import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from brewctl.errors import BrewError
from brewctl.sandbox import maven

KAFKA_VERSION = "4.3.1"
# The trailing "!" keeps jgo from importing log4j's BOM, which would bring an older Kafka client.
ENDPOINTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}!", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4!")
# Only the bench needs this jar, for Kafka's performance tools.
_TOOLS = {
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}": "62f3c5dd7aa3442d4c5bc6a95f86e2502178ea09de8e27f74d9563bf955e253c"
}


def fetch(folder: Path, advance: Callable[[int, int, str], None]) -> list[Path]:
    """Return the jars below `folder` in a fixed order, downloading missing or damaged ones.

    An interrupted download goes on where it stopped. Raises BrewError without a network or with a wrong hash.
    """
    return _fetched(folder, _lock(), advance)


def fetch_tools(folder: Path) -> list[Path]:
    """Return the jars of Kafka's command line tools, downloading as `fetch` does."""
    return _fetched(folder, {**_lock(), **_TOOLS}, lambda _done, _total, _what: None)


def present(folder: Path) -> list[Path] | None:
    """Return the jars below `folder`, in the order of `fetch`; None if one is missing or damaged."""
    return _present(folder, _lock())


def present_tools(folder: Path) -> list[Path] | None:
    """Return the jars of Kafka's command line tools, as `present` does."""
    return _present(folder, {**_lock(), **_TOOLS})


def _present(folder: Path, locked: Mapping[str, str]) -> list[Path] | None:
    jars = [_path(folder, coordinate) for coordinate in locked]
    whole = all(jar.exists() and _hash(jar) == sha256 for jar, sha256 in zip(jars, locked.values(), strict=True))
    return jars if whole else None


def fetch_one(folder: Path, coordinate: str, sha256: str, begins: Callable[[], None]) -> Path:
    """Return a jar below `folder`. If it is missing or damaged, call `begins`, then download it. Raises BrewError."""
    jar = _path(folder, coordinate)
    if not jar.exists() or _hash(jar) != sha256:
        jar.unlink(missing_ok=True)
        begins()
        maven.download(folder, coordinate)
        if _hash(jar) != sha256:
            jar.unlink()
            hint = "try again; a proxy or mirror must not answer with another file"
            raise BrewError(f"the download of {coordinate} is not the file that was published", hint=hint)
    return jar


def _fetched(folder: Path, locked: Mapping[str, str], advance: Callable[[int, int, str], None]) -> list[Path]:
    found: list[Path] = []
    for coordinate, sha256 in locked.items():

        def begins() -> None:
            advance(len(found), len(locked), "downloading Kafka (45 MB, once)")

        found.append(fetch_one(folder, coordinate, sha256, begins))
    return found


def resolve(folder: Path) -> str:
    """Resolve the endpoints anew and return the text of a jars.lock. For the project's developers."""
    context = maven.context(folder)
    inputs, others = context.resolver.resolve([context.create_dependency(endpoint) for endpoint in ENDPOINTS])
    lines = []
    for dependency in (*inputs, *others):
        jar = dependency.artifact.resolve()
        coordinate = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
        lines.append(f"{coordinate} {_hash(jar)}\n")
    return "".join(sorted(lines))


def _lock() -> dict[str, str]:
    lines = resources.files(__package__).joinpath("jars.lock").read_text("utf-8").splitlines()
    return dict(line.split() for line in lines)


def _path(folder: Path, coordinate: str) -> Path:
    """Return where a Maven repository keeps a jar."""
    group, artifact, version = coordinate.split(":")
    return folder.joinpath(*group.split("."), artifact, version, f"{artifact}-{version}.jar")


def _hash(jar: Path) -> str:
    with jar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as empty:
        print(resolve(Path(empty)), end="")
