"""Serves a role's `--http`: /metrics, /livez and /readyz, and tells systemd that the role is up and alive."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from brewctl import __version__, log, metrics
from brewctl.errors import BrewError
from brewctl.probes.health import DRAINS, Health, Readiness, answer
from brewctl.probes.pages import Answer, Page

if TYPE_CHECKING:
    from brewctl.probes.endpoint import Address

_NOTIFY_SOCKET = "NOTIFY_SOCKET"


@contextlib.contextmanager
def observed(where: "Address | None", stop: threading.Event, *, node: str, role: str) -> Iterator[Health]:
    """Serve the three pages while the block runs; without `where` nothing is served or counted.

    Raises PortError if the port is taken, UsageError if prometheus-client is not installed.
    """
    health = Health(stop)
    with contextlib.ExitStack() as held:
        if where:
            os.environ.pop(metrics.SHARED, None)  # set for another program
            shown = metrics.enable(role=role, version=__version__)
            held.enter_context(_served(where, node, shown, health.livez, health.readyz))
        held.enter_context(managed(stop, health))
        yield health


@contextlib.contextmanager
def managed(stop: threading.Event, health: Health, livez: Page | None = None) -> Iterator[None]:
    """While the block runs, tell systemd that this process is up and alive, if systemd asks for that.

    `livez`: the page that decides whether it is alive; default: that of `health`.
    """
    if not os.environ.get(_NOTIFY_SOCKET):
        yield
        return
    from brewctl.probes import systemd  # noqa: PLC0415 - only under systemd

    with systemd.told(stop, livez or health.livez) as manager:
        health.on_up, health.on_wait = manager.ready, manager.waits
        yield


@contextlib.contextmanager
def observed_worker(stop: threading.Event, *, node: str, role: str) -> Iterator[Health]:
    """Share a worker's metrics and health with the process that started it, if that serves `--http`.

    Raises BrewError if the folder for that can't be used, or is full.
    """
    health = Health(stop)
    folder = Path(os.environ.get(metrics.SHARED, ""))
    if not folder.name:
        yield health
        return
    from brewctl.probes import endpoint  # noqa: PLC0415 - only where something is served

    pages: dict[str, Page] = {"/livez": health.livez, "/readyz": health.readyz}
    with contextlib.ExitStack() as served:
        try:
            metrics.enable(role=role, version=__version__, shared=True)
            served.enter_context(endpoint.serving_locally(_socket(folder, node), pages))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = "name another folder for temporary files with TMPDIR"
            raise BrewError(f"--http: no numbers can be kept in {folder} ({reason})", hint=hint) from error
        yield health


@contextlib.contextmanager
def observed_crew(
    where: "Address | None", stop: threading.Event, *, node: str, role: str, names: Sequence[str], within_s: float
) -> Iterator[tuple[Path | None, Health]]:
    """Serve the three pages for several worker processes while the block runs.

    Yield the folder that they share, None without `where`, and the health to be set up when all of them are. A worker
    that does not answer within `within_s` seconds is stuck; without `where` none is asked. Raises what `observed` does.
    """
    health = Health(stop)
    with contextlib.ExitStack() as held:
        if where is None:
            held.enter_context(managed(stop, health))
            yield None, health
            return
        try:
            name = held.enter_context(tempfile.TemporaryDirectory(prefix="brewctl-", ignore_cleanup_errors=True))
        except OSError as error:
            hint = "name a folder for temporary files with TMPDIR"
            raise BrewError(f"--http: {(error.strerror or str(error)).lower()}", hint=hint) from error
        folder = Path(name)
        crew = _Crew(folder, names, stop, within_s=within_s)
        shown = metrics.summed(folder, role=role, version=__version__)
        held.enter_context(_served(where, node, shown, crew.livez, crew.readyz))
        held.enter_context(managed(stop, health, crew.livez))
        yield folder, health


class _Shown(Protocol):
    content_type: str

    def exposed(self) -> bytes: ...


@contextlib.contextmanager
def _served(where: "Address", node: str, shown: _Shown, livez: Page, readyz: Page) -> Iterator[None]:
    from brewctl.probes import endpoint  # noqa: PLC0415 - only where something is served

    def numbers() -> Answer:
        return Answer(HTTPStatus.OK, shown.content_type, shown.exposed())

    pages: dict[str, Page] = {"/metrics": numbers, "/livez": livez, "/readyz": readyz}
    with endpoint.serving(where, pages) as bound:
        log.say(node, f"http serves {', '.join(pages)} on {bound.host}:{bound.port}")
        yield


class _Crew:
    """Asks every worker. A dead one counts as not ready, and not as stuck: its parent replaces it."""

    def __init__(self, folder: Path, names: Sequence[str], stop: threading.Event, *, within_s: float) -> None:
        self._folder = folder
        self._names = names
        self._stop = stop
        self._within_s = within_s

    def livez(self) -> Answer:
        return answer("alive", "stuck", self._asked("/livez", starting=True))

    def readyz(self) -> Answer:
        findings = [DRAINS] if self._stop.is_set() else self._asked("/readyz", starting=False)
        return answer("ready", "not ready", findings)

    def _asked(self, page: str, *, starting: bool) -> list[Readiness]:
        with ThreadPoolExecutor(len(self._names)) as threads:
            found = threads.map(lambda name: self._ask(name, page, starting=starting), self._names)
            return [finding for findings in found for finding in findings]

    def _ask(self, name: str, page: str, *, starting: bool) -> list[Readiness]:
        from brewctl.probes import endpoint  # noqa: PLC0415 - only where something is served

        try:
            said = endpoint.ask(_socket(self._folder, name), page, within_s=self._within_s)
        except TimeoutError:
            return [Readiness(ready=False, text=f"{name} does not answer within {self._within_s:g} s")]
        except OSError:
            return [Readiness(ready=starting, text=f"{name} starts, or stops")]
        verdict, *lines = said.body.decode(errors="replace").splitlines() or ["no answer"]
        if said.status == HTTPStatus.OK:
            return [Readiness(ready=True, text=f"{name} {verdict}")]
        ill = [line.removeprefix("NO ") for line in lines if line.startswith("NO ")] or [verdict]
        return [Readiness(ready=False, text=f"{name}: {line}") for line in ill]


def _socket(folder: Path, worker: str) -> Path:
    # The path of a Unix socket has about 100 bytes at most, and a node's name may be long.
    return folder / f"{worker.rpartition('.')[2]}.sock"
