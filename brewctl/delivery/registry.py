"""Finds downstreams by their names, MODULE:NAME, and lists those that the settings name.

The working directory, or another folder, is on sys.path as for uvicorn and celery, but only during this import. Its
modules are found before installed ones, and never in place of Python's or brewctl's own.
"""

import contextlib
import difflib
import functools
import importlib
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from brewctl.config import DEFAULT_DOWNSTREAMS, DOWNSTREAM_NAME, SHORT_NAMES, Settings, short_name
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError, ModuleError, UsageError


def configured(settings: Settings) -> tuple[Downstream, ...]:
    """Return the downstreams that the settings name, in their order.

    Raises UsageError if one does not exist, or two have the same group.
    """
    by_group: dict[str, str] = {}
    found = []
    for name in settings.downstreams:
        downstream = find(name)
        if other := by_group.get(downstream.group):
            raise UsageError(
                f"downstreams {other} and {name} have the same group {downstream.group}",
                hint="give one of them another group: they would take each other's events",
            )
        by_group[downstream.group] = name
        found.append(downstream)
    return tuple(found)


def further(settings: Settings) -> tuple[Downstream, ...]:
    """Return the configured downstreams that are not the story's own. Imports nothing if there are none."""
    own = set(DEFAULT_DOWNSTREAMS)
    return tuple(find(name) for name in settings.downstreams if name not in own)


def kafka_groups(settings: Settings) -> tuple[str, ...]:
    """Return the names in Kafka of the configured downstreams' groups."""
    return tuple(kafka_group(settings, downstream) for downstream in configured(settings))


def kafka_name(settings: Settings, group: str) -> str:
    """Return the name in Kafka of a group that a user names: with the prefix, if it is a configured downstream's."""
    own = {downstream.group for downstream in configured(settings)} if settings.group_prefix else ()
    return settings.group_prefix + group if group in own else group


def started_as(settings: Settings, group: str) -> str:
    """Return the argument with which `brewctl start` runs a node of a group; `group`: its name in Kafka."""
    for name in settings.downstreams:
        if kafka_group(settings, find(name)) == group:
            return short_name(name)
    return group


def kafka_group(settings: Settings, downstream: Downstream) -> str:
    """Return the name in Kafka of a downstream's consumer group: with the prefix of the settings."""
    return settings.group_prefix + downstream.group


def full_name(name: str) -> str:
    """Return the MODULE:NAME that a short name stands for, or the name itself."""
    return SHORT_NAMES.get(name, name)


def is_own(name: str) -> bool:
    """Tell whether a name is that of one of the story's own downstreams."""
    return full_name(name) in DEFAULT_DOWNSTREAMS


def find(name: str, app_dir: str = "") -> Downstream:
    """Return the downstream with this MODULE:NAME, or short name.

    `app_dir`: the folder to search in place of BREW_APP_DIR and the working directory. Raises UsageError if there is
    none, or if its group is one of the story's own; ModuleError if the module can't be imported.
    """
    found = _find(full_name(name), "" if is_own(name) else _folder(app_dir))
    if not is_own(name):
        for own in DEFAULT_DOWNSTREAMS:
            if _find(own, "").group == found.group:
                hint = 'give it another group, as in @downstream("my-group")'
                raise UsageError(f"{name}: the group {found.group} is brewctl's own", hint=hint)
    return found


@functools.cache
def _find(name: str, folder: str) -> Downstream:
    module_name, _, attribute = name.partition(":")
    if not DOWNSTREAM_NAME.fullmatch(name) or module_name.endswith(".py"):
        raise UsageError(f"downstream {name[:80]!r} is not MODULE:NAME", hint=_mended(name))
    module = _import(module_name, folder)
    there = [each for each, value in vars(module).items() if isinstance(value, Downstream)]
    known = f"there {'is' if len(there) == 1 else 'are'} {', '.join(there)}"
    if not hasattr(module, attribute):
        where = getattr(module, "__file__", None) or "part of python"
        close = difflib.get_close_matches(attribute, there, 1)
        hint = f"did you mean {module_name}:{close[0]}" if close else known if there else _NO_DOWNSTREAM
        raise UsageError(f"module {module_name} ({where}) has no {attribute!r}", hint=hint)
    found = getattr(module, attribute)
    if not isinstance(found, Downstream):
        if isinstance(found, types.FunctionType):
            what, hint = "a plain function", f'put @downstream("{attribute}") above it'
        else:
            what, hint = f"of type {type(found).__name__}", known if there else _NO_DOWNSTREAM
        raise UsageError(f"downstream {name} is {what}, and no downstream", hint=hint)
    if not found.folder and (file := getattr(module, "__file__", None)):
        found = replace(found, folder=str(Path(file).parent))
    return found


_NO_DOWNSTREAM = "put @downstream(…) above a handler in it"


def _mended(name: str) -> str:
    module, colon, attribute = name.partition(":")
    folder, slash, file = module.rpartition("/")
    if slash or file.endswith(".py"):
        option = f" --app-dir {folder or '/'}" if slash else ""
        return f"write {file.removesuffix('.py')}:{attribute or 'NAME'}{option}"
    if not colon and (close := difflib.get_close_matches(name, SHORT_NAMES, 1)):
        return f"did you mean {close[0]}"
    own = " and ".join(SHORT_NAMES)
    return f"for example loyalty:points, which is `points` in loyalty.py; the story's own are {own}"


def _folder(app_dir: str) -> str:
    app_dir = app_dir or os.environ.get("BREW_APP_DIR", "")
    try:
        folder = Path(app_dir or ".").resolve(strict=True)
    except OSError as error:
        where = f"--app-dir {app_dir}" if app_dir else "the working directory"
        raise UsageError(f"{where} can't be read ({(error.strerror or str(error)).lower()})") from None
    if not folder.is_dir():
        raise UsageError(f"--app-dir {app_dir} is no folder")
    return str(folder)


def _import(name: str, folder: str) -> types.ModuleType:
    with _searched(folder) if folder else contextlib.nullcontext():
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and _is_part(error.name, name):
                near = f"{name.replace('.', '/')}.py"
                hint = f"is there a {near} in {folder}? --app-dir names another folder"
                raise UsageError(f"there is no module {error.name!r}", hint=hint) from None
            if isinstance(error, BrewError):  # raised by @downstream
                raise UsageError(f"module {name}: {error.message}", hint=error.hint) from error
            said = " ".join(traceback.format_exception_only(error)[-1].split())
            if isinstance(error, SyntaxError):
                said = f"{said} (line {error.lineno} of {error.filename})"
            hint = "mend it; `brewctl -v …` has the traceback"
            raise ModuleError(f"module {name} can't be imported: {said}", hint=hint) from error


def _is_part(missing: str | None, name: str) -> bool:
    """Tell whether the missing module is the one asked for, or a package that contains it."""
    return missing is not None and f"{name}.".startswith(f"{missing}.")


@contextlib.contextmanager
def _searched(folder: str) -> Iterator[None]:
    """Put a folder on sys.path while the block runs: after Python's own modules, before installed ones."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    place = next((number for number, each in enumerate(sys.path) if each in installed), len(sys.path))
    sys.path.insert(place, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
