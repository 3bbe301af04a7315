"""Measure the CPU time of groups of processes, and how busy all cores are."""

import contextlib
from collections.abc import Mapping, Sequence

import psutil
from psycopg.conninfo import conninfo_to_dict

from brewctl import affinity, config
from brewctl.config import Settings
from brewctl.sandbox import processes, state

KAFKA, POSTGRESQL = "Kafka", "PostgreSQL"


class Meter:
    """Measures CPU time since it was made."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        """Begin to measure. `groups`: pids by the group's name; their child processes are included."""
        self._groups = groups
        self._before = {name: spent_s(pids) for name, pids in groups.items()}
        self._cores_before = _cores_s()

    def spent(self) -> dict[str, float]:
        """Return the CPU seconds that each group has spent."""
        return {name: spent_s(pids) - self._before[name] for name, pids in self._groups.items()}

    def busy(self) -> float | None:
        """Return the share of all cores' time in which they were busy; None if that is unknown."""
        busy_s, all_s = self._cores()
        return busy_s / all_s if all_s > 0 else None

    def others(self) -> float | None:
        """Return the share of all cores' time that other processes than the groups took; None if that is unknown."""
        (busy_s, all_s), ours_s = self._cores(), sum(self.spent().values())
        return max(0.0, busy_s - ours_s) / all_s if all_s > 0 else None

    def _cores(self) -> tuple[float, float]:
        (busy_s, all_s), (busy_before_s, all_before_s) = _cores_s(), self._cores_before
        return busy_s - busy_before_s, all_s - all_before_s


def spent_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds of processes and all their descendants, since each began.

    Servers such as PostgreSQL's start and end processes meanwhile. The time of an ended process is added to its
    parent's times of children (proc_pid_stat(5): cutime, cstime), so that the sum is complete. It is wrong only for a
    process that ends between the reading of its parent and its own. The resolution is a tick, usually 10 ms. macOS does
    not report children's times: there the time of ended processes is lost.
    """
    total = 0.0
    for pid in pids:
        members: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            members = [psutil.Process(pid)]
            members += members[0].children(recursive=True)
        for member in members:
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def server_pids(settings: Settings) -> dict[str, list[int]]:
    """Return the pids of Kafka and PostgreSQL, for those servers that are this home's sandbox."""
    known = state.load(config.home())
    if known is None:
        return {}
    running = {name: server.pid for name, server in known.servers.items() if processes.find(server)}
    found: dict[str, list[int]] = {}
    brokers = [pid for name, pid in running.items() if name != "postgres"]
    if brokers and set(settings.brokers) == set(known.brokers):
        found[KAFKA] = brokers
    place = conninfo_to_dict(settings.database_url)
    if "postgres" in running and (place.get("host"), str(place.get("port"))) == ("127.0.0.1", str(known.postgres_port)):
        found[POSTGRESQL] = [running["postgres"]]
    return found


def _cores_s() -> tuple[float, float]:
    """Return the busy seconds, and all seconds, since boot, of the cores that this process may use."""
    allowed = affinity.allowed()
    busy = whole = 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if allowed and core not in allowed:
            continue
        # `guest` is part of `user`. A core is idle in `iowait`, but not in `steal`, which the host took.
        worked = sum(
            getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal", "interrupt")
        )
        busy += worked
        whole += worked + times.idle + getattr(times, "iowait", 0.0)
    return busy, whole
