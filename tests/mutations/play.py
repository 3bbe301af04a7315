"""Play mutations of the system with real roles on real servers, and see that each is caught by its check alone.

`python -m tests.mutations.play [PART-OF-A-NAME …]`, or `make mutations`; on the servers that BREW_DATABASE_URL and
BREW_KAFKA_BROKERS name, else on a sandbox of its own.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from brewctl.client import failed_call
from brewctl.lab.chaos import ledger, verdict
from brewctl.lab.load.load import History, Load
from brewctl.lab.network.proxy import Proxy
from brewctl.lab.play.nodes import Node, Nodes
from brewctl.lab.play.nodes import role as role_of
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, open_rig
from tests.mutations import mutant
from tests.mutations.catalogue import CONTROL, MUTATIONS, ORDERS, Mutation
from tests.mutations.servers import servers

_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 120.0


class Play:
    """One mutation with servers, processes and orders of its own."""

    def __init__(self, rig: Rig, nodes: Nodes) -> None:
        self._rig = rig
        self._nodes = nodes
        self._found: set[str] | None = None

    def start(self, role: str) -> Node:
        """Start a replica of a role and wait until it works."""
        arguments = ("--port", "0") if role == "order" else ("--session-timeout", "6")
        node = self._nodes.start(f"{role_of(role).stem}-1", *role_of(role).command, *arguments)
        node.wait_ready(timeout_s=_PATIENCE_S)
        return node

    def failing(self, late_s: float) -> set[str] | None:
        """Name the checks of the changed program's own `verify` that fail; None where there was no order yet."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", mutant.MODULE, "verify", "--json", "--late", str(late_s)],
            env={**os.environ, **self._rig.env},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        if not done.stdout:
            raise AssertionError(done.stderr)
        answer = json.loads(done.stdout)
        failed = {check["name"] for check in answer["checks"] if check["violations"]}
        assert done.returncode == (1 if failed else 0), done.stderr
        return failed if answer["facts"]["outbox_rows"] else None

    def play(self, mutation: Mutation) -> set[str]:
        """Send orders, and wait until exactly the right checks fail; return those that did in the end."""
        order, *_ = [self.start(role) for role in mutation.roles]
        send([order.address])
        mutation.during(self._rig)
        expected = {mutation.check, *mutation.also} - {""}

        def caught() -> bool:
            self._found = self.failing(mutation.late_s)
            return self._found == expected

        with contextlib.suppress(TimeoutError):
            wait_until("the verdict", caught, timeout_s=_PATIENCE_S, every_s=0.5)
        return self._found or set()


def send(addresses: list[str], *, orders: int = ORDERS, timeout_s: float = 30.0, cancel: float = 0.0) -> History:
    """Create orders, one after the other, cancel a share of them, and return what the client was told."""
    told = History()
    load = Load(
        addresses,
        told.record,
        concurrency=1,
        orders=orders,
        timeout_s=timeout_s,
        cancel=cancel,
        record_cancel=told.record_cancel,
    )
    load.run(threading.Event())
    return told


@contextlib.contextmanager
def opened(servers: dict[str, str], logs: Path, changes: tuple[str, ...]) -> Iterator[tuple[Rig, Play]]:
    """A database and a topic of a play's own, whose processes have these changes."""
    changed = {mutant.VARIABLE: " ".join(changes), "PYTHONPATH": str(_ROOT)}
    with (
        open_rig(servers, logs) as rig,
        mock.patch.dict(os.environ, changed),
        Nodes(rig.settings, logs=logs, on_line=lambda _line: None, module=mutant.MODULE) as nodes,
    ):
        ledger.create(rig.connection)
        yield rig, Play(rig, nodes)


def play(mutation: Mutation, servers: dict[str, str], logs: Path) -> set[str]:
    """Play a mutation, and return which checks failed."""
    with opened(servers, logs, mutation.changes) as (_, stage):
        return stage.play(mutation)


# The verdict on what clients were told


def play_acknowledged_unwritten(servers: dict[str, str], logs: Path) -> verdict.Contradictions:
    """Play an order-service that acknowledges what it does not write."""
    with opened(servers, logs, ("acknowledged_unwritten",)) as (rig, stage):
        told = send([stage.start("order").address])
        return verdict.compare(rig.connection, told.calls)


def play_refused_written(servers: dict[str, str], logs: Path) -> verdict.Contradictions:
    """Play a client that takes a lost answer for a refusal, on a network that loses answers."""
    with opened(servers, logs, ()) as (rig, stage):
        host, _, port = stage.start("order").address.rpartition(":")
        with (
            Proxy("order-1", (host, int(port))) as proxy,
            mock.patch.object(failed_call.Failure, "doubtful", property(lambda _failure: False)),
        ):
            proxy.cut_response(0)
            told = send([proxy.address], orders=2, timeout_s=1.0)
        return verdict.compare(rig.connection, told.calls)


def play_cancel_unwritten(servers: dict[str, str], logs: Path) -> verdict.Contradictions:
    """Play an order-service that acknowledges cancels that it does not write."""
    with opened(servers, logs, ("cancel_unwritten",)) as (rig, stage):
        told = send([stage.start("order").address], orders=2, cancel=1.0)
        return verdict.compare(rig.connection, told.calls, told.cancels)


def play_cancel_refused(servers: dict[str, str], logs: Path) -> verdict.Contradictions:
    """Play a client that takes the lost answer to a cancel for a refusal."""
    with opened(servers, logs, ()) as (rig, stage):
        host, _, port = stage.start("order").address.rpartition(":")
        with (
            Proxy("order-1", (host, int(port))) as proxy,
            mock.patch.object(failed_call.Failure, "doubtful", property(lambda _failure: False)),
            mock.patch.object(failed_call.Failure, "worth_a_retry", property(lambda _failure: False)),
        ):
            proxy.cut_response(0, every=2, times=1)  # the answer to the Cancel, after the one to the Create
            told = send([proxy.address], orders=1, cancel=1.0)
        return verdict.compare(rig.connection, told.calls, told.cancels)


VERDICTS = {
    "chaos: acknowledged": ("order-service acknowledges what it does not write", play_acknowledged_unwritten, "lost"),
    "chaos: refused": ("a client takes lost answers for refusals", play_refused_written, "refused_written"),
    "chaos: cancel answered": (
        "order-service acknowledges cancels that it does not write",
        play_cancel_unwritten,
        "not_cancelled",
    ),
    "chaos: cancel refused": (
        "a client takes a cancel's lost answer for a refusal",
        play_cancel_refused,
        "refused_cancelled",
    ),
}


def main() -> int:
    """Play all, or those whose name has one of the arguments in it; print a table, and fail where one was missed."""
    with servers() as found:
        return 1 if _play_all(found, sys.argv[1:] or [""]) else 0


def _play_all(servers: dict[str, str], wanted: list[str]) -> int:
    """Play what is wanted, and return how many were not caught as they should be."""
    missed = 0
    print(f"{'check':<24}{'what is changed':<60}caught by")
    for mutation in (CONTROL, *MUTATIONS):
        label = f"{mutation.check or '(none)'} {mutation.name}"
        if not any(part in label for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as logs:
            found = play(mutation, servers, Path(logs))
        good = found == {mutation.check, *mutation.also} - {""}
        missed += not good
        shown = ", ".join(sorted(found)) or "nothing"
        print(f"{mutation.check or '(none)':<24}{mutation.what:<60}{shown}{'' if good else '  WRONG'}", flush=True)
    for check, (what, act, field) in VERDICTS.items():
        if not any(part in check for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as logs:
            found_by_field = {name: value for name, value in vars(act(servers, Path(logs))).items() if value}
        good = set(found_by_field) == {field}
        missed += not good
        print(f"{check:<24}{what:<60}{', '.join(found_by_field) or 'nothing'}{'' if good else '  WRONG'}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
