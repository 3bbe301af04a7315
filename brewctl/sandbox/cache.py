"""What is prepared once a user, for all sandboxes: a folder that one command at a time may change."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from brewctl import config
from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import jars, state, surroundings

_VARIABLE = "XDG_CACHE_HOME"
# The jars, and what Java learns of them.
_ROOM_BYTES = 150 * 10**6


def folder() -> Path:
    """Return where it is. Raises UsageError where it can't be there."""
    chosen = config.cache() / f"kafka-{jars.KAFKA_VERSION}"
    surroundings.require_usable(chosen, _VARIABLE)
    if "!/" in str(chosen):  # the end of a jar's name in an URL
        hint = f"set {_VARIABLE} to another folder"
        raise UsageError(f"{chosen}: java finds no jars below a folder whose name ends with `!`", hint=hint)
    return chosen


@contextmanager
def opened(complete: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the folder, which other commands leave alone meanwhile.

    One that can't be written, as on a read-only disk, is used as it is where it is `complete`. Raises BrewError where
    it is not, before anything is downloaded, and for what goes wrong with its files.
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
    """Say whether a file is there; a crash of the machine may leave one empty."""
    return file.exists() and file.stat().st_size > 0


def writable(chosen: Path) -> bool:
    """Say whether anything can be added to it, or it can be made."""
    try:
        return os.access(next(place for place in (chosen, *chosen.parents) if place.exists()), os.W_OK | os.X_OK)
    except OSError:
        return False


def unusable(chosen: Path) -> BrewError:
    """Return the error for a folder that can't be written, though something is missing in it."""
    return BrewError(f"{chosen} can't be written", hint=f"set {_VARIABLE} to a folder of yours")


def require_room(chosen: Path) -> None:
    """Raise BrewError where a download would not fit."""
    if (free := shutil.disk_usage(chosen).free) < _ROOM_BYTES:
        message = f"{free / 10**6:.0f} MB are free for {chosen}, and Kafka takes {_ROOM_BYTES / 10**6:.0f}"
        raise BrewError(message, hint=f"make room, or set {_VARIABLE} to a folder on another disk")
