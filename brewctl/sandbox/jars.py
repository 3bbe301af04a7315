"""Kafka's jars: downloaded once a machine by jgo, checked against jars.lock, shared by all sandboxes.

jgo trusts what it finds on disk and only warns of a wrong checksum, so every file is hashed before it is used.
"""

import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from brewctl.errors import BrewError
from brewctl.sandbox import parts

if TYPE_CHECKING:
    from jgo.maven import MavenContext

KAFKA_VERSION = "4.3.1"
# The trailing "!" keeps jgo from importing log4j's BOM, which would bring an older Kafka client.
ENDPOINTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}!", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4!")
# Beside the nodes' own jars: only the bench needs it.
_TOOLS = {
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}": "62f3c5dd7aa3442d4c5bc6a95f86e2502178ea09de8e27f74d9563bf955e253c"
}


def fetch(folder: Path, advance: Callable[[int, int, str], None]) -> list[Path]:
    """Return the jars below `folder` in a fixed order, downloading what is missing or damaged.

    An interrupted download goes on where it stopped. Raises BrewError without a network or with a wrong hash.
    """
    return _fetched(folder, _lock(), advance)


def fetch_tools(folder: Path) -> list[Path]:
    """Return the jars that Kafka's command line tools need, as `fetch` does."""
    return _fetched(folder, {**_lock(), **_TOOLS}, lambda _done, _total, _what: None)


def _fetched(folder: Path, locked: Mapping[str, str], advance: Callable[[int, int, str], None]) -> list[Path]:
    jars = []
    for done, (coordinate, sha256) in enumerate(locked.items(), start=1):
        jar = _path(folder, coordinate)
        if not jar.exists() or _hash(jar) != sha256:
            jar.unlink(missing_ok=True)
            advance(done - 1, len(locked), "downloading Kafka (45 MB, once)")
            _download(folder, coordinate)
            if _hash(jar) != sha256:
                jar.unlink()
                raise BrewError(f"the download of {coordinate} is damaged", hint="try again")
        jars.append(jar)
    return jars


def resolve(folder: Path) -> str:
    """Resolve the endpoints anew and return the text of a jars.lock. For the project's developers."""
    context = _context(folder)
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


def _download(folder: Path, coordinate: str) -> None:
    context = _context(folder)
    from requests import RequestException  # noqa: PLC0415 - jgo's, and so of the extra

    try:
        context.create_dependency(coordinate + "!").artifact.resolve()
    except RequestException as error:
        hint = "connect once; later starts need no network"
        raise BrewError(
            f"can't download {coordinate} from Maven Central ({type(error).__name__})", hint=hint
        ) from error
    except (RuntimeError, OSError) as error:
        raise BrewError(f"can't download {coordinate} from Maven Central: {error}") from error


def _context(folder: Path) -> "MavenContext":
    try:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415 - an extra
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415 - an extra
    except ImportError:
        raise parts.missing("jgo") from None
    return MavenContext(resolver=PythonResolver(), repo_cache=folder, remote_repos={"central": MAVEN_CENTRAL_URL})


def _hash(jar: Path) -> str:
    with jar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as empty:
        print(resolve(Path(empty)), end="")
