"""What a load costs: the CPU time of groups of processes, read from outside, and how busy all cores are meanwhile."""

import contextlib
from collections.abc import Mapping, Sequence

import psutil
from psycopg.conninfo import conninfo_to_dict

from brewctl import affinity, config
from brewctl.config import Settings
from brewctl.sandbox import processes, state

KAFKA, POSTGRESQL = "Kafka", "PostgreSQL"


class Meter:
    """Reads what groups of processes have spent, and all cores, since it was made."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        """Begin. A group is processes by their pids, with all that they start."""
        self._groups = groups
        self._before = {name: spent_s(pids) for name, pids in groups.items()}
        self._cores_before = _cores_s()

    def spent(self) -> dict[str, float]:
        """Return the CPU seconds that each group has spent."""
        return {name: spent_s(pids) - self._before[name] for name, pids in self._groups.items()}

    def busy(self) -> float | None:
        """Return the share of the time of all cores in which they worked, for anyone."""
        busy_s, all_s = self._cores()
        return busy_s / all_s if all_s > 0 else None

    def others(self) -> float | None:
        """Return the share of the time of all cores in which they worked for no process of the groups."""
        (busy_s, all_s), ours_s = self._cores(), sum(self.spent().values())
        return max(0.0, busy_s - ours_s) / all_s if all_s > 0 else None

    def _cores(self) -> tuple[float, float]:
        (busy_s, all_s), (busy_before_s, all_before_s) = _cores_s(), self._cores_before
        return busy_s - busy_before_s, all_s - all_before_s


def spent_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds of processes, and of all that they have started, since each began.

    A server such as PostgreSQL's begins and ends processes meanwhile. The time of one that has ended is its parent's,
    as that of a child (proc_pid_stat(5): cutime, cstime), so with both counted the sum loses nothing and has nothing
    twice: but for one that ends between the look at its parent and at itself. The system counts in ticks, 10 ms each
    as a rule: of some seconds that is little. Not so on macOS, where no child's time is told: there what has ended is
    lost.
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
    """Return the servers' processes, where the servers are those of the sandbox in this home; else nothing."""
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
    """Return how long the cores that this process may use have worked since the boot, and how long they could have."""
    allowed = affinity.allowed()
    busy = whole = 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if allowed and core not in allowed:
            continue
        # A guest's time is in `user` too; in `iowait` a core is idle, in what the host took (`steal`) it is not.
        worked = sum(
            getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal", "interrupt")
        )
        busy += worked
        whole += worked + times.idle + getattr(times, "iowait", 0.0)
    return busy, whole
