"""How long `brewctl db init` takes on a large database of an older version, and what roles at work see of it.

    eval "$(brewctl env)" && python -m tests.upgrade_times 1000000 [SCHEMA]

SCHEMA is one of tests/integration/schemas, by default the newest.

Makes a database of its own beside the one that BREW_DATABASE_URL names, and drops it.
"""

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from tests.conftest import run

SCHEMAS = Path(__file__).parent / "integration" / "schemas"
FILL = """
INSERT INTO orders SELECT gen_random_uuid(), 'brew', 'c' || n, 450, 'EUR', 'ORDER_STATUS_NEW', 'k' || n, now()
  FROM generate_series(1, {rows}) AS n;
INSERT INTO outbox (aggregate_id, topic, payload, published_at, publisher_node)
SELECT 'order-' || id, 't', convert_to(repeat(id::text, 4), 'UTF8'), now(), 'order-1' FROM orders;
INSERT INTO processed_events (consumer, outbox_id)
SELECT consumer, id FROM outbox CROSS JOIN (VALUES ('inventory'), ('notifications')) AS g (consumer);
INSERT INTO inventory_reservations (order_id, node_id) SELECT id, 'inventory-1' FROM orders;
INSERT INTO notifications_log (order_id, node_id, channel) SELECT id, 'notification-1', 'push' FROM orders;
VACUUM ANALYZE;
CREATE SEQUENCE numbers START {free}
"""
# What roles of the older version do all the time, a statement of each.
WORK = {
    "an order": """
WITH new AS (INSERT INTO orders SELECT gen_random_uuid(), 'brew', 'c', 450, 'EUR', 'ORDER_STATUS_NEW', NULL, now()
             RETURNING id)
INSERT INTO outbox (aggregate_id, topic, payload) SELECT 'order-' || id, 't', '' FROM new""",
    "a publisher": """
UPDATE outbox SET published_at = now()
 WHERE id = (SELECT id FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)""",
    "inventory": """
WITH taken AS (INSERT INTO processed_events (consumer, outbox_id) SELECT 'inventory', nextval('numbers'))
INSERT INTO inventory_reservations (order_id, node_id) VALUES (gen_random_uuid(), 'i')""",
    "notifications": """
WITH taken AS (INSERT INTO processed_events (consumer, outbox_id) SELECT 'notifications', nextval('numbers'))
INSERT INTO notifications_log (order_id, node_id, channel) VALUES (gen_random_uuid(), 'n', 'c')""",
}
FILES = """
SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""


@contextlib.contextmanager
def fresh(server: str) -> Iterator[str]:
    name = f"upgrade_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as maintenance:
        maintenance.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


class Worker(threading.Thread):
    """Runs a statement again and again, and knows how long the slowest one took."""

    def __init__(self, url: str, statement: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._statement = statement.encode()
        self.over = threading.Event()
        self.times: list[float] = []

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self.over.wait(0.002):
                began = time.monotonic()
                connection.execute(self._statement)
                self.times.append(time.monotonic() - began)

    def longest_ms(self) -> float:
        """Of those since the last time that this was asked."""
        times, self.times = self.times, []
        return 1000 * max(times, default=0.0)


def main(rows: int, version: str) -> None:
    """Print what `db init` says, and the longest statement of each worker before it and during it."""
    with fresh(os.environ["BREW_DATABASE_URL"]) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute((SCHEMAS / f"{version}.sql").read_bytes())
        for statement in FILL.format(rows=rows, free=10 * rows).split(";"):
            connection.execute(statement.encode())
        before: dict[str, int] = dict(connection.execute(FILES).fetchall())
        workers = {name: Worker(url, statement) for name, statement in WORK.items()}
        for worker in workers.values():
            worker.start()
        time.sleep(3)
        quiet = {name: worker.longest_ms() for name, worker in workers.items()}
        began = time.monotonic()
        done = run("db", "init", env={"BREW_DATABASE_URL": url}, timeout=3600)
        took_s = time.monotonic() - began
        busy = {name: worker.longest_ms() for name, worker in workers.items()}
        for worker in workers.values():
            worker.over.set()
            worker.join()
        after: dict[str, int] = dict(connection.execute(FILES).fetchall())
        rewritten = [name for name, file in before.items() if after[name] != file]
    print(f"{done.stderr}{done.stdout}in all {took_s:.1f} s, with the start of the command; exit {done.returncode}")
    print(f"tables that were written anew: {', '.join(map(str, rewritten)) or 'none'}")
    for name in workers:
        print(f"longest statement of {name}: {quiet[name]:.0f} ms before, {busy[name]:.0f} ms during")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else max(path.stem for path in SCHEMAS.glob("*.sql")))
