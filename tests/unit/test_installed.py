"""Names of libraries' insides: those that the program uses are listed, and there, and releases are bounded."""

import ast
import inspect
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from brewctl import installed
from brewctl.delivery.broker.kafka_python import assumed as of_kafka
from brewctl.delivery.database import lent_transaction
from brewctl.errors import BrewError
from brewctl.roles.order import assumed as of_grpc
from brewctl.tracing import TracesOffError, sdk
from tests.deploying import ROOT

ASSUMED: dict[str, Mapping[str, Iterable[str]]] = {
    of_kafka.LIBRARY: of_kafka.NAMES,
    of_grpc.LIBRARY: of_grpc.NAMES,
    "psycopg": lent_transaction.ASSUMED,
    "opentelemetry-sdk": sdk.ASSUMED,
}
LISTED = {name for names in ASSUMED.values() for each in names.values() for name in each}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REQUIRED = [
    Requirement(each) for each in itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
]
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
SOURCES = [path for path in sorted((ROOT / "brewctl").rglob("*.py")) if "_pb2" not in path.name]
PRIVATE = re.compile(r"_[^_]\w*")


@pytest.mark.parametrize("library", ASSUMED)
def test_the_installed_library_has_what_is_used_of_its_inside(library: str) -> None:
    assert installed.missing(ASSUMED[library]) == []


def of_others() -> Iterator[tuple[str, str]]:
    """Private names that a module asks of other objects than its own, which the linter marks, by the module."""
    for path in SOURCES:
        text = path.read_text("utf-8")
        own = set(re.findall(r"(?:\bself\.|\bdef )(_\w+)(?:: .* = | = |\()", text))
        for line in (line.partition("#")[0] for line in text.splitlines() if "noqa: SLF001" in line):
            for owner, name in re.findall(r"([\w.\])]+)\.(_[a-z]\w*|_[A-Z_]+MESSAGE_TOKEN)\b", line):
                if owner != "self" and name not in own:
                    yield str(path.relative_to(ROOT)), name


def of_bases() -> Iterator[tuple[str, str]]:
    """Private names that classes below a library's share with it, by the class: called, set or replaced."""
    for path in SOURCES:
        tree = ast.parse(path.read_text("utf-8"))
        kinds = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases}
        if not kinds or "kafka" not in path.read_text("utf-8"):
            continue
        module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, node in kinds.items():
            kind = getattr(module, name, None)
            if inspect.isclass(kind) and (
                bases := [each for each in kind.__mro__ if each.__module__.startswith("kafka.")]
            ):
                theirs = installed._names(f"{bases[0].__module__}:{bases[0].__name__}")
                ours = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)} | {*vars(kind)}
                yield from ((name, each) for each in sorted(ours & theirs) if PRIVATE.fullmatch(each))


def test_what_is_used_of_an_inside_is_listed() -> None:
    asked = {*of_others(), *of_bases()}
    assert len(asked) > 50
    assert sorted(each for each in asked if each[1] not in LISTED) == []


@pytest.mark.parametrize("library", ASSUMED)
def test_no_release_is_taken_that_may_have_another_inside(library: str) -> None:
    (required,) = [each for each in REQUIRED if each.name == library]
    assert any(each.operator == "<" for each in required.specifier)


def test_each_dependency_is_pinned_within_its_bounds() -> None:
    pins = {str(each): PINS.get(canonicalize_name(each.name), "") for each in REQUIRED if each.name != "brewctl"}
    assert [each for each, pin in pins.items() if not (pin and pin in Requirement(each).specifier)] == []


def test_a_library_that_lacks_a_name_is_told_with_the_release_to_install() -> None:
    with pytest.raises(BrewError) as told:
        installed.require("kafka-python-ng", {"kafka.consumer.fetcher:Fetcher": ("_reset_offset", "_nothing")})
    assert re.fullmatch(
        r"kafka-python-ng [\d.]+ has no kafka\.consumer\.fetcher\.Fetcher\._nothing, which brewctl uses",
        told.value.message,
    )
    assert re.fullmatch(r"pip install 'kafka-python-ng[<>=,.\d]+'", told.value.hint)
    assert installed.missing({"kafka.nowhere": ("time",), "kafka.conn:Nobody": ("_sock",)}) == [
        "kafka.nowhere.time",
        "kafka.conn.Nobody._sock",
    ]


@pytest.mark.parametrize(
    ("command", "broken", "told"),
    [
        (
            "consume inventory --node inventory-1",
            "import kafka.consumer.fetcher as m; del m.Fetcher._reset_offset",
            "kafka.consumer.fetcher.Fetcher._reset_offset",
        ),
        (
            "serve order --node order-1",
            "import grpc._server as m; del m._possibly_finish_call",
            "grpc._server._possibly_finish_call",
        ),
        (
            "consume inventory --node inventory-1",
            "import kafka.client_async as m; del m.MetadataRequest",
            "kafka.client_async.MetadataRequest",
        ),
    ],
)
def test_a_role_ends_at_its_start_with_one_line(command: str, broken: str, told: str) -> None:
    code = f"import sys; {broken}; from brewctl.cli.main import main; sys.argv[1:] = {command.split()}; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert f" has no {told}, which brewctl uses: pip install '" in line


def test_a_role_goes_on_without_traces_where_their_library_lacks_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "ASSUMED", {"opentelemetry.sdk.trace:TracerProvider": ("_nothing",)})
    with pytest.raises(TracesOffError, match=r"has no opentelemetry\.sdk\.trace\.TracerProvider\._nothing") as told:
        sdk.opened("order", node="order-1", environ={}, by_parent=False)
    assert "pip install 'opentelemetry-sdk" in told.value.hint
