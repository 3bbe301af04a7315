"""docs/operations.md, "Backup and restore": a database as it was a while ago, and a Kafka that went on."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator

import psycopg

from brewctl.config import SHORT_NAMES
from tests.conftest import Rig, begin, run

READY = {"order": "listening on ", **dict.fromkeys(SHORT_NAMES, "partitions assigned")}


class Story:
    """Roles and commands on one database, which another one may replace."""

    def __init__(self, rig: Rig, url: str) -> None:
        self.rig = rig
        self.env = {**rig.env, "BREW_DATABASE_URL": url}

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(*arguments, env=self.env)

    @contextlib.contextmanager
    def playing(self, *names: str) -> Iterator[str]:
        """Run the roles, one of each, until the block's end; yield the order-service's address."""
        commands = {"order": ("serve", "order", "--port", "0")}
        with contextlib.ExitStack() as held:
            address = ""
            for name in names:
                process = begin(*commands.get(name, ("consume", name)), env=self.env, stderr=subprocess.STDOUT)
                held.callback(end, process)
                assert process.stdout
                line = next(line for line in process.stdout if READY[name] in line)
                address = line.split()[-1] if name == "order" else address
            yield address

    def create(self, count: int, *, effects: int | None = None) -> None:
        """Create orders, and wait until they are published; with consumers, until there are so many effects."""
        consumers = () if effects is None else tuple(SHORT_NAMES)
        with self.playing("order", *consumers) as address:
            made = self("create-order", "--customer", "c", "--count", str(count), "--addr", address)
            assert made.returncode == 0, made.stderr
            said = "outbox_unpublished=0" + (f" reservations={effects} notifications={effects}" if consumers else "")
            self.rig.wait(said, lambda: said in self("counts").stdout)

    def broken(self) -> set[str]:
        """The promises that verify finds broken, each with how often."""
        verdict = self("verify", "--late", "0").stdout.rstrip().rpartition("\n")[2]
        return set(verdict.removeprefix("verdict: FAILED: ").split(", "))


def end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_a_database_that_was_restored_goes_on_and_what_is_lost_is_named(rig: Rig) -> None:
    with rig.own_database() as url, rig.own_database() as other:
        story = Story(rig, url)
        assert story("db", "init").returncode == 0
        story.create(3)  # published, and not consumed before the backup
        backup = copy(rig, url, other)
        story.create(4, effects=7)  # after the backup, the three before it too

        restored = Story(rig, backup)
        assert {"strangers 4", "inventory-missing 3", "notifications-missing 3"} <= restored.broken()
        assert "republished=3" in restored("outbox", "republish", "--missing", "--yes").stdout
        # New orders have outbox ids that the lost ones had, and their effects all the same.
        restored.create(6, effects=9)
        assert restored.broken() == {"strangers 4"}


def copy(rig: Rig, url: str, other: str) -> str:
    """Make the second database as the first one is now, and return its URL."""
    names = [psycopg.conninfo.conninfo_to_dict(each)["dbname"] for each in (url, other)]
    rig.connection.execute(f'DROP DATABASE "{names[1]}" WITH (FORCE)'.encode())
    rig.connection.execute(f'CREATE DATABASE "{names[1]}" TEMPLATE "{names[0]}"'.encode())
    return other
