# ruff: noqa: E501 - places in the code are quoted as they stand
"""Each promise of docs/failure-modes.md, broken in a copy of the program: the tests that must fail then.

`python -m tests.mutations.promises [PART-OF-A-PROMISE …]`, or `make mutations`. The tests run on the servers that
BREW_DATABASE_URL and BREW_KAFKA_BROKERS name, else on one sandbox for all of them.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.servers import servers

ROOT = Path(__file__).parents[2]
_LIMIT_S = 300.0


@dataclass(frozen=True)
class Broken:
    """A promise, and how it is broken: `old` is there once in `file`, and becomes `new`; then each of `tests` fails."""

    promise: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


PROMISES = [
    Broken(
        "an acknowledged order has its event, in one commit",
        "the outbox row is left out",
        "brewctl/sql/queries.sql",
        "      FROM new_order JOIN written USING (id)\n",
        "      FROM new_order JOIN written USING (id) WHERE false\n",
        ("tests/integration/test_cancel.py::test_a_cancel_is_a_change_and_an_event_in_one_commit",),
    ),
    Broken(
        "an acknowledged order has its event, in one commit",
        "a failed commit is answered OK",
        "brewctl/delivery/orders/group_commit.py",
        "        except Exception as error:  # noqa: BLE001 - handled below, by its kind\n            failure = error\n",
        "        except Exception:  # noqa: BLE001\n            written = {each.new.id for each in batch}\n",
        ("tests/integration/test_grpc_bounds.py::test_a_failure_leaves_neither_order_nor_event_and_asks_for_a_retry",),
    ),
    Broken(
        "a row is marked after its own acknowledgement",
        "all rows of a batch are marked",
        "brewctl/delivery/outbox/publisher.py",
        "published = {row_id: outcome for row_id, outcome in sent.items() if isinstance(outcome, Place)}",
        "published = {row_id: outcome if isinstance(outcome, Place) else Place(0, 0) for row_id, outcome in sent.items()}",
        ("tests/integration/test_outbox.py::test_only_acknowledged_rows_are_marked",),
    ),
    Broken(
        "a row is marked after its own acknowledgement",
        "rows are committed as published before they are sent",
        "brewctl/delivery/outbox/publisher.py",
        "            outcomes = producer.send(",
        "            connection.execute('UPDATE outbox SET published_at = now() WHERE id = ANY(%s)', [list(records)])\n"
        "            connection.execute('COMMIT')\n"
        "            outcomes = producer.send(",
        ("tests/integration/test_outbox.py::test_only_acknowledged_rows_are_marked",),
    ),
    Broken(
        "repeats have no second effect",
        "the inbox takes an event that it has had",
        "brewctl/sql/queries.sql",
        "      JOIN (SELECT outbox_id FROM brew_taken UNION ALL SELECT outbox_id FROM brew_reused) AS new USING (outbox_id)",
        "      JOIN (SELECT outbox_id FROM brew_event) AS new USING (outbox_id)",
        ("tests/integration/test_inbox.py::test_the_inbox_remembers_what_its_effect_does_not",),
    ),
    Broken(
        "dedup row and effect are one transaction",
        "dedup rows are committed whatever becomes of the effect",
        "brewctl/delivery/inbox/inbox.py",
        "                        effects = self._effect(connection, fresh, repeats)\n",
        "                        ids = [event.outbox_id for event in fresh]\n"
        "                        connection.execute('INSERT INTO processed_events (consumer, outbox_id) SELECT %s, '\n"
        "                                           'unnest(%s::bigint[]) ON CONFLICT DO NOTHING', [self.group, ids])\n"
        "                        effects = self._effect(connection, fresh, repeats)\n",
        ("tests/integration/test_inbox.py::test_dedup_row_and_effect_commit_together_or_not_at_all",),
    ),
    Broken(
        "order per key",
        "any row is fetched, not just the head of its aggregate",
        "brewctl/sql/queries.sql",
        "    SELECT aggregate_id, min(id) AS id, coalesce(min(id) = min(id) FILTER (WHERE aggregate_seq = 1), false) AS begins\n      FROM ready\n     GROUP BY aggregate_id\n",
        "    SELECT aggregate_id, id, true AS begins\n      FROM ready\n",
        (
            "tests/integration/test_fetch_unpublished.py::test_publishers_skip_each_others_rows_and_whatever_stands_behind_them",
        ),
    ),
    Broken(
        "a dead letter is acknowledged before its offset moves",
        "one without an acknowledgement is forgotten",
        "brewctl/delivery/inbox/burial.py",
        "        dead[:] = [each for each, outcome in pairs if not isinstance(outcome, Place)]\n",
        "        dead.clear()\n        outcomes = []\n",
        (
            "tests/integration/test_dead_letters.py::test_no_offset_passes_a_dead_letter_that_kafka_has_not_acknowledged",
        ),
    ),
    Broken(
        "offsets are committed after the database",
        "offsets of a batch are committed although it is not written",
        "brewctl/delivery/inbox/batch.py",
        "        if undone:\n            self.settled = [",
        "        if undone and not self.records:\n            self.settled = [",
        ("tests/integration/test_inbox.py::test_what_is_done_of_a_batch_that_is_given_up_need_not_come_again",),
    ),
    Broken(
        "a commit wakes the publisher",
        "it does not",
        "brewctl/delivery/outbox/publisher.py",
        "        self._wake.set()\n",
        "        pass\n",
        ("tests/integration/test_outbox.py::test_a_commit_wakes_the_publisher_without_a_poll",),
    ),
    Broken(
        "an idempotency key gives the first order back, and only to the same body",
        "another body with the same key gets the first order too",
        "brewctl/delivery/orders/store.py",
        "    if found is None or _body(found) != _body(new.order):\n",
        "    if found is None:\n",
        ("tests/integration/test_grpc_idempotency.py::test_the_same_key_with_another_body_already_exists",),
    ),
    Broken(
        "later events of a parked key wait behind it",
        "they have their effect",
        "brewctl/delivery/inbox/parking.py",
        "        behind = [read for read in part if read[1].key in keys]\n",
        "        behind, keys = [], set()\n",
        (
            "tests/integration/test_parking.py::test_one_event_of_many_is_tried_again_then_parked_and_what_follows_of_its_key_waits_behind_it",
        ),
    ),
    Broken(
        "a cancel is written once",
        "a second Cancel adds a second event",
        "brewctl/delivery/orders/cancellation.py",
        "        if known == ORDER_STATUS_CANCELLED:\n            return answer, False\n        if known != ORDER_STATUS_NEW:\n",
        "        if known not in (ORDER_STATUS_NEW, ORDER_STATUS_CANCELLED):\n",
        ("tests/integration/test_cancel.py::test_a_second_cancel_answers_the_same_and_writes_nothing",),
    ),
    Broken(
        "the first signal drains, the second quits",
        "the first quits",
        "brewctl/signals.py",
        "        if self._handled > 1:\n",
        "        if self._handled > 0:\n",
        ("tests/unit/test_signals.py::test_the_first_signal_drains",),
    ),
    Broken(
        "a process is ended only if it is the one that was started",
        "a stored pid is believed whatever lives under it",
        "brewctl/sandbox/processes.py",
        "        if server.birth:\n",
        "        if server.pid:\n            return process\n        if server.birth:\n",
        ("tests/unit/test_processes.py::test_a_pid_that_belongs_to_another_is_left_alone",),
    ),
    Broken(
        "errors are one clear line",
        "a traceback is printed without -v",
        "brewctl/cli/main.py",
        "        if output.verbose and not wrong:\n",
        "        if not wrong:\n",
        ("tests/unit/test_cli_servers.py::test_without_kafka",),
    ),
]


def copy(to: Path) -> None:
    """Copy what git knows of the project, as it is in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0")[:-1]:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def break_it(broken: Broken, text: str) -> str:
    """Return the text of a file with the promise broken. Raises ValueError where the place is not there once."""
    if (found := text.count(broken.old)) != 1:
        raise ValueError(f"{broken.file} has this {found} times, not once: {broken.old.strip()[:80]}")
    return text.replace(broken.old, broken.new)


def failing(folder: Path, tests: Sequence[str], env: dict[str, str]) -> set[str]:
    """Run tests of a copy, and return those that fail, an error in a fixture included."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "--tb=no", "-rfE", *tests],
        cwd=folder,
        env={**os.environ, **env, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{' '.join(tests)}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE))


def missed(broken: Broken, folder: Path, env: dict[str, str]) -> list[str]:
    """Break a promise in the copy, run its tests, mend it; return those of its tests that did not fail."""
    file = folder / broken.file
    whole = file.read_text()
    file.write_text(break_it(broken, whole))
    try:
        found = failing(folder, broken.tests, env)
    finally:
        file.write_text(whole)
    return [test for test in broken.tests if not any(each.partition("[")[0] == test for each in found)]


def main() -> int:
    """Break all promises, or those whose name has one of the arguments in it; fail where a test does not notice."""
    wanted = sys.argv[1:] or [""]
    unnoticed = 0
    with servers() as env, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        chosen = [broken for broken in PROMISES if any(part in broken.promise for part in wanted)]
        if whole := failing(folder, sorted({test for broken in chosen for test in broken.tests}), env):
            print(f"fails although nothing is broken: {', '.join(sorted(whole))}")
            return 1
        for broken in chosen:
            left = missed(broken, folder, env)
            unnoticed += bool(left)
            noticed = ", ".join(test.rpartition("::")[2] for test in broken.tests if test not in left)
            print(f"{broken.promise}\n  {broken.what}\n  {noticed or 'no test'} failed", flush=True)
            for test in left:
                print(f"  MISSED by {test}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
