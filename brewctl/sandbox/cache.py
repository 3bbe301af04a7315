"""The cache folder of a user, which all sandboxes share. One command at a time may change it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from brewctl import config
from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import jars, state, surroundings

_VARIABLE = "XDG_CACHE_HOME"
# For Kafka's jars and the AOT cache.
_ROOM_BYTES = 150 * 10**6


def folder() -> Path:
    """Return the path of the cache folder. Raises UsageError where Java or PostgreSQL can't use that path."""
    chosen = config.cache() / f"kafka-{jars.KAFKA_VERSION}"
    surroundings.require_usable(chosen, _VARIABLE)
    if "!/" in str(chosen):  # in a jar: URL this ends the jar's name
        hint = f"set {_VARIABLE} to another folder"
        raise UsageError(f"{chosen}: java finds no jars below a folder whose name ends with `!`", hint=hint)
    return chosen


@contextmanager
def opened(complete: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the cache folder, locked against other commands.

    A folder that can't be written, as on a read-only disk, is yielded unlocked if it is `complete`. Raises BrewError if
    it is not, before anything is downloaded, and for an OSError in the block.
    """
    chosen = folder()
    with ExitStack() as stack:
        try:
            try:
                stack.enter_context(state.locked(chosen, variable=_VARIABLE))
            except BrewError:
                if not (chosen.is_dir() and complete(chosen)):
                    raise
            yield chosen
        except OSError as error:
            message = f"{error.filename or chosen} can't be used ({(error.strerror or str(error)).lower()})"
            hint = f"make room, or set {_VARIABLE} to a folder of yours on another disk"
            raise BrewError(message, hint=hint) from error


def has(file: Path) -> bool:
    """Say whether a file exists and is not empty, as a crash of the machine may leave it."""
    return file.exists() and file.stat().st_size > 0


def writable(chosen: Path) -> bool:
    """Say whether files can be created in the folder, or the folder itself can be."""
    try:
        return os.access(next(place for place in (chosen, *chosen.parents) if place.exists()), os.W_OK | os.X_OK)
    except OSError:
        return False


def unusable(chosen: Path) -> BrewError:
    """Return the error for a folder that is incomplete and can't be written."""
    return BrewError(f"{chosen} can't be written", hint=f"set {_VARIABLE} to a folder of yours")


def require_room(chosen: Path) -> None:
    """Raise BrewError where the disk has no room for a download."""
    if (free := shutil.disk_usage(chosen).free) < _ROOM_BYTES:
        message = f"{free / 10**6:.0f} MB are free for {chosen}, and Kafka takes {_ROOM_BYTES / 10**6:.0f}"
        raise BrewError(message, hint=f"make room, or set {_VARIABLE} to a folder on another disk")
