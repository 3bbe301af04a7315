"""What `from brewctl import …` gives to a service or a downstream of one's own, and what that costs the command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import brewctl
from brewctl import errors, security
from brewctl.delivery import downstream, events
from brewctl.delivery.outbox import adding
from brewctl.proto import orders_pb2
from tests.deploying import ROOT


def test_what_users_need_is_there() -> None:
    assert brewctl.add_event is adding.add_event
    assert brewctl.Event is events.Event
    assert brewctl.downstream is downstream.downstream
    assert (brewctl.Downstream, brewctl.Reject, brewctl.Later) == (
        downstream.Downstream,
        downstream.Reject,
        downstream.Later,
    )
    assert (brewctl.OrderCreated, brewctl.OrderCancelled) == (orders_pb2.OrderCreated, orders_pb2.OrderCancelled)
    assert (brewctl.Secret, brewctl.UsageError) == (security.Secret, errors.UsageError)
    assert {*brewctl.__all__} == {*brewctl._MODULES} <= {*dir(brewctl)}
    with pytest.raises(AttributeError, match="module 'brewctl' has no attribute 'nothing'"):
        brewctl.nothing  # noqa: B018


def test_each_place_names_this_version() -> None:
    texts = {
        name: (ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "CHANGELOG.md", "docs/deployment.md")
    }
    kustomization = (ROOT / "deploy/kubernetes/overlays/example/kustomization.yaml").read_text("utf-8")
    assert re.findall(r'^version = "(.*)"$', texts["pyproject.toml"], re.MULTILINE) == [brewctl.__version__]
    assert re.findall(r"^## \[(\d.*)\] - ", texts["CHANGELOG.md"], re.MULTILINE)[0] == brewctl.__version__
    assert {*re.findall(r"brewctl:(\d\S+)", texts["docs/deployment.md"])} == {brewctl.__version__}
    assert re.findall(r"newTag: (\S+)", kustomization) == [brewctl.__version__]


def test_the_command_does_not_import_it() -> None:
    heavy = "{'psycopg', 'google', 'grpc'}"
    code = f"import sys, brewctl.cli.main; print(*(m for m in sys.modules if m.split('.')[0] in {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_it_is_typed_for_others(tmp_path: Path) -> None:
    """A module of a user's own passes mypy --strict, and its mistakes are found."""
    (tmp_path / "mine.py").write_text(
        "import psycopg\n"
        "from psycopg.rows import dict_row\n"
        "from brewctl import Event, OrderCreated, add_event\n"
        "def pay(dsn: str) -> int:\n"
        "    with psycopg.connect(dsn, row_factory=dict_row) as tx:\n"
        "        return add_event(tx, aggregate_id='a', event_type='e', payload=OrderCreated())\n"
        "def amount(event: Event[OrderCreated]) -> int:\n"
        "    return event.data.amount_cents\n"
        "add_event('dsn', aggregate_id='a', event_type='e', payload=b'x')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", "mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert errors[0].startswith('mine.py:9: error: Argument 1 to "add_event"')
