"""Every leg of the bench on real servers, in small: what it measures is there, beside a floor that was measured too."""

from pathlib import Path
from types import ModuleType

import pytest

from brewctl.errors import BrewError
from brewctl.lab.bench import LEGS, create, drains, flow, growth, startup
from brewctl.lab.bench.ground import Ground
from brewctl.lab.nodes import CAST
from brewctl.sandbox import tools
from tests.conftest import Rig


@pytest.fixture
def ground(rig: Rig, tmp_path: Path) -> Ground:
    return Ground(rig.settings, rig.connection, logs=tmp_path / "bench", tell=lambda _text: None)


@pytest.fixture(autouse=True)
def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[ModuleType, dict[str, object]] = {
        create: {"_SECONDS": 1, "_WARMUP_S": 0.1},
        drains: {"WAITING": 3000, "_ONE_BY_ONE": 50},
        flow: {"_SECONDS": 2.0, "_ORDERS": 1500, "_WARM": 10, "_LOOK_S": 0.01},
        growth: {"_FEW": 100, "_MANY": 2000, "_DEAD": 500, "_FILLED_AT_ONCE": 500, "_SECONDS": 1},
        startup: {"_RUNS": 1},
    }
    for module, sizes in small.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize(
    ("leg", "names"),
    [
        ("create", {"create p50, 1 in flight", "create, 64 in flight", "create p99, 64 in flight"}),
        ("publish", {"publisher drain", "publisher drain against Java"}),
        ("consume", {"consumer drain, one node", "consumer drain, two nodes", "consumer drain against one by one"}),
        ("latency", {"end to end p50, 100 orders/s", "end to end p99, 100 orders/s"}),
        ("memory", {f"memory of {name}" for name in CAST}),
        ("startup", {"brewctl --help", "brewctl create-order"}),
        ("growth", {"create, a million orders", "publisher drain, a million rows"}),
    ],
)
def test_a_leg_measures_itself_and_its_floor(ground: Ground, leg: str, names: set[str]) -> None:
    figures = list(LEGS[leg](ground))
    assert names <= {figure.name for figure in figures}
    for figure in figures:
        assert figure.value > 0, figure
        assert (figure.floor or 0) > 0 or not figure.floor_name, figure


def test_without_kafkas_tools_that_floor_is_missing_and_the_rest_is_there(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise BrewError("can't download")

    monkeypatch.setattr(tools, "KafkaTools", absent)
    floors = {figure.name: figure.floor for figure in drains.publish(ground)}
    assert floors["publisher drain against Java"] is None
    assert floors["publisher drain"]
