"""The webhook channel as a downstream: what it imports and when, what it tells, and whose calls it makes."""

import ast
import json
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import brewctl
from brewctl import Event, Later, OrderCancelled, OrderCreated
from brewctl.roles import webhook
from brewctl.roles.webhook.shares import Shares
from tests.conftest import run

FOLDER = Path(webhook.__file__).parent
HEADERS = [
    ("tenant-id", b"brew"),
    ("trace-id", b"a" * 32),
    ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
]
ENV = {"BREW_NOTIFY_CHANNEL": "webhook", "BREW_DATABASE_URL": "postgresql://u@127.0.0.1:1/x"}


def imported(source: str) -> set[str]:
    """Return what a module imports of brewctl, as `from brewctl.x` or as `brewctl.NAME`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            module = node.module or ""
            found |= {f"brewctl.{alias.name}" for alias in node.names} if module == "brewctl" else {module}
    return {name for name in found if name.split(".")[0] == "brewctl"}


def test_it_is_written_with_what_everybody_may_import() -> None:
    public = {f"brewctl.{name}" for name in (*brewctl.__all__, "__version__")}
    modules = sorted(FOLDER.glob("*.py"))
    assert len(modules) > 3
    for path in modules:
        names = imported(path.read_text(encoding="utf-8"))
        own = {name for name in names if name.startswith("brewctl.roles.webhook")}
        assert names - own <= public, path.name


def python(code: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return done.stdout.strip()


@pytest.mark.parametrize("env", [{}, {"BREW_NOTIFY_CHANNEL": "log"}, {"BREW_NOTIFY_CHANNEL": "webhook"}])
def test_without_a_call_no_library_of_http_is_imported(env: dict[str, str]) -> None:
    """Nor is anything of the channel where it is not chosen. With it, tools that only look at the group need none."""
    heavy = "{'httpx2', 'httpcore2', 'standardwebhooks', 'asyncio', 'anyio'}"
    code = (
        "import sys, brewctl.cli.consume; from brewctl.roles.notifications import DOWNSTREAM as found;"
        f"print(*sorted(m for m in sys.modules if m in {heavy} or m.startswith('brewctl.roles.webhook')), found.lanes)"
    )
    said = python(code, **env)
    if env.get("BREW_NOTIFY_CHANNEL") == "webhook":
        assert said == "brewctl.roles.webhook brewctl.roles.webhook.shares 16"
    else:
        assert said == "0"


def test_where_its_libraries_are_missing_the_line_says_what_installs_them() -> None:
    code = (
        "import sys; sys.modules['httpx2'] = None\n"
        "from brewctl.roles.notifications import DOWNSTREAM\n"
        "from brewctl.errors import UsageError\n"
        "try:\n  DOWNSTREAM.alive('n').__enter__()\nexcept UsageError as error:\n  print(error)\n"
    )
    said = "--channel webhook: there is no module httpx2: run `pip install 'brewctl[webhook]'`"
    assert python(code, BREW_NOTIFY_CHANNEL="webhook") == said


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--channel", "webhook"], {}, "no URL is given: add --url, or set BREW_WEBHOOK_URL"),
        (["--channel", "webhook", "--url", "nonsense"], {}, "of 8 characters, is no URL of a receiver"),
        (["--channel", "webhook", "--url", "http://shop.example/"], {}, "add --plain-http"),
        (["--channel", "webhook", "--url", "https://shop.example/"], {}, "BREW_WEBHOOK_SECRET is not set"),
        ([], {**ENV, "BREW_WEBHOOK_URL": "https://shop.example/"}, "BREW_WEBHOOK_SECRET is not set"),
        (
            ["--channel", "webhook", "--url", "https://shop.example/"],
            {"BREW_WEBHOOK_SECRET_FILE": "/nowhere"},
            "BREW_WEBHOOK_SECRET_FILE: /nowhere can't be read",
        ),
        (["--url", "https://shop.example/"], {}, "--url is given without --channel webhook"),
        (["--channel", "pigeon"], {}, "'pigeon' is not one of 'log', 'webhook'"),
        ([], {"BREW_NOTIFY_CHANNEL": "pigeon"}, "'pigeon' is not one of 'log', 'webhook'"),
        (
            ["--channel", "webhook"],
            {"BREW_WEBHOOK_CONCURRENCY": "many"},
            "BREW_WEBHOOK_CONCURRENCY: 'many' is no number",
        ),
        (["--channel", "webhook", "--timeout", "0"], {}, "greater than or equal to 0.1"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(arguments: list[str], env: dict[str, str], said: str) -> None:
    done = run("consume", "notifications", *arguments, env={"BREW_DATABASE_URL": ENV["BREW_DATABASE_URL"], **env})
    assert (done.returncode, said in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_another_tool_says_so_of_a_channel_that_is_none() -> None:
    done = run("consume", env={"BREW_NOTIFY_CHANNEL": "pigeon"})
    assert done.returncode == 2
    assert "BREW_NOTIFY_CHANNEL: 'pigeon' is no channel: use log, webhook" in done.stderr


def event_of(data: Any, kind: str, event_id: str | None = "e1", headers: Any = HEADERS) -> Event[Any]:
    return Event(7, event_id, kind, "order-1", 1, data, b"", headers, 0)


def test_what_a_notification_says() -> None:
    at = Timestamp()
    at.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    created = OrderCreated(order_id="o1", customer_id="alice", amount_cents=1, created_at=at)
    body = webhook.body_of(event_of(created, "order.created"), "created")
    assert body == webhook.body_of(event_of(created, "order.created"), "created")
    assert json.loads(body) == {
        "id": "e1",
        "type": "order.created",
        "timestamp": "2026-01-02T03:04:05Z",
        "tenant_id": "brew",
        "trace_id": "a" * 32,
        "data": {"order_id": "o1", "state": "created", "customer_id": "alice"},
    }
    cancelled = OrderCancelled(order_id="o1", reason="tepid \u2615\n", cancelled_at=at)
    told = json.loads(webhook.body_of(event_of(cancelled, "order.cancelled", None), "cancelled"))
    assert told["data"] == {"order_id": "o1", "state": "cancelled", "reason": "tepid \u2615\n"}
    assert told["id"] == "outbox-7", "of a producer that gave it no id"


class Sent:
    """In place of a sender."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def send(self, *arguments: Any, of: str) -> None:
        self.calls.append((*arguments, of))


class Written:
    """In place of a transaction."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def execute(self, _query: str, row: dict[str, Any]) -> None:
        self.rows.append(row)


@pytest.mark.parametrize(
    ("headers", "passed"),
    [(HEADERS, {"traceparent": HEADERS[2][1].decode()}), ([("traceparent", b"00-x\r\nevil: 1")], {}), ([], {})],
)
def test_the_trace_goes_on_where_it_is_one(headers: Any, passed: dict[str, str]) -> None:
    channel, sent, written = webhook.Webhook(lanes=4), Sent(), Written()
    channel._sender = sent  # type: ignore[assignment]
    order_id = str(uuid.uuid4())
    event = event_of(OrderCreated(order_id=order_id, customer_id="bob"), "order.created", headers=headers)
    channel.notify(event, written)  # type: ignore[arg-type]
    ((identity, _, sent_headers, of),) = sent.calls
    assert (identity, sent_headers, of) == ("e1", passed, "bob")
    assert [(row["order_id"], row["seq"], row["state"]) for row in written.rows] == [(order_id, 1, "created")]


def test_a_customer_has_a_quarter_of_the_calls_and_those_without_one_half() -> None:
    shares = Shares(8)
    both = threading.Barrier(3)
    over = threading.Event()

    def call(customer: str) -> None:
        with shares.of(customer):
            both.wait()
            over.wait()

    for customer, count in (("slow", 2),):
        threads = [threading.Thread(target=call, args=(customer,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        both.wait()
        with pytest.raises(Later, match="2 calls are being made for one customer"), shares.of(customer):
            pass
        with shares.of("another"), shares.of("another"), shares.of(""), shares.of(""), shares.of(""), shares.of(""):
            pass
        over.set()
        for thread in threads:
            thread.join()
    with shares.of("slow"):
        pass
    assert shares._began == {}


def test_calls_that_are_quick_are_waited_for() -> None:
    shares, made = Shares(4), []

    def call(number: int) -> None:
        with shares.of("one"):
            made.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(50))
