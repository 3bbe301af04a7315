"""The units: command lines and variables that the program knows, time to drain, and what systemd says of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from brewctl.config import SHORT_NAMES
from tests.conftest import BREWCTL
from tests.deploying import DRAIN_S, ROOT, check, unknown

FOLDER = ROOT / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
DROP_INS = sorted([*FOLDER.glob("*.d/*.conf"), *FOLDER.glob("*.conf")])
PROGRAM = "/opt/brewctl/bin/brewctl"
EVERY = "brewctl-.service.d"  # its files count for each unit whose name begins with brewctl-
# Unknown to an older systemd, which says so and goes on.
SINCE = {"RestartSteps": 254, "RestartMaxDelaySec": 254}
# What systemd-analyze gives: 10 is a unit without any hardening. A role needs the network.
EXPOSURE = 2.0

Setting = tuple[str, str]


def settings(file: Path) -> list[Setting]:
    """The settings of a unit or drop-in, in their order; those of one name may stand several times."""
    lines = [line for line in file.read_text("utf-8").splitlines() if line and line[0] not in "#[;"]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def values(file: Path, name: str) -> list[str]:
    return [value for key, value in settings(file) if key == name]


def filled(text: str, *, instance: str) -> str:
    """A line as systemd runs it."""
    return text.replace("%i", instance).replace("%l", "host-1").replace("%d", "/run/credentials/unit")


def seconds(file: Path, name: str) -> float:
    (value,) = values(file, name)
    return float(value)


def kind(unit: Path) -> str:
    (found,) = values(unit, "Type")
    return found


each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
each_role = pytest.mark.parametrize(
    "unit", [each for each in UNITS if kind(each) != "oneshot"], ids=lambda each: each.stem
)


def test_there_is_a_unit_for_each_role() -> None:
    assert {each.stem for each in UNITS} == {
        "brewctl-consumer@",
        "brewctl-metrics",
        "brewctl-migrate",
        "brewctl-order@",
        "brewctl-publisher",
        "brewctl-retention",
    }


@pytest.mark.parametrize("file", [*UNITS, *DROP_INS], ids=lambda file: file.name)
def test_its_command_lines_are_ones_that_the_program_takes(file: Path) -> None:
    instances = tuple(SHORT_NAMES) if "consumer" in file.name else ("1",)
    lines = [each for each in values(file, "ExecStart") if each]
    assert lines or file in DROP_INS
    for line in lines:
        for instance in instances:
            program, *arguments = filled(line, instance=instance).split()
            assert program == PROGRAM
            assert not check(arguments).startswith("%")


@pytest.mark.parametrize("file", [*UNITS, *DROP_INS], ids=lambda file: file.name)
def test_its_variables_are_ones_that_the_program_reads_and_its_secrets_are_credentials(file: Path) -> None:
    variables = dict(each.split("=", 1) for line in values(file, "Environment") for each in line.split())
    assert not unknown([*variables])
    assert not [name for name in variables if re.search("(PASSWORD|_URL|TOKEN)$", name)]
    credentials = {each.partition(":")[0] for each in values(file, "LoadCredential")}
    used = {value.removeprefix("%d/") for value in variables.values() if value.startswith("%d/")}
    assert used == credentials
    assert file in DROP_INS or "database_url" in credentials


@each_unit
def test_it_has_the_time_to_drain(unit: Path) -> None:
    assert seconds(unit, "TimeoutStopSec") > DRAIN_S
    assert values(unit, "KillSignal") == ["SIGTERM"]


@each_role
def test_a_role_starts_again_unless_it_was_called_wrongly(unit: Path) -> None:
    assert kind(unit) in {"notify", "exec"}
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "RestartPreventExitStatus") == ["2"]
    assert values(unit, "StartLimitIntervalSec") == ["0"], "an outage may be long"
    assert seconds(unit, "RestartSec") < seconds(unit, "RestartMaxDelaySec")
    assert values(unit, "KillMode") == ["mixed"], "the supervisor tells its workers"
    (command,) = values(unit, "ExecStart")
    if kind(unit) == "notify":
        assert seconds(unit, "WatchdogSec") > 0
        # A start that waits for its servers is no start that hangs.
        assert (values(unit, "TimeoutStartSec") == ["infinity"]) == ("--wait forever" in command)


def test_the_target_has_all_roles_and_each_waits_for_the_tables_steps() -> None:
    for unit in UNITS:
        if kind(unit) == "oneshot":
            continue
        assert values(unit, "WantedBy") == ["brewctl.target"]
        assert values(unit, "PartOf") == ["brewctl.target"]
        assert "brewctl-migrate.service" in values(unit, "After")[0].split()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The units in a folder of their own, with a program that is there."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    folder = tmp_path / "units"
    shutil.copytree(FOLDER, folder)
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text("utf-8").replace(PROGRAM, BREWCTL), "utf-8")
    # The colon: beside systemd's own, of which network-online.target is one.
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{folder}:")
    return folder


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def instance(unit: Path) -> str:
    """A unit's name, of a template the first instance's."""
    return unit.name.replace("@.", "@inventory." if "consumer" in unit.name else "@1.")


@each_unit
def test_systemd_takes_it(installed: Path, unit: Path) -> None:
    version = int(re.findall(r"\d+", analyze("--version").stdout)[0])
    done = analyze("verify", str(installed / instance(unit)))
    complaints = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not any(f"'{name}'" in line and version < since for name, since in SINCE.items())
    ]
    assert not complaints
    assert done.returncode == 0


@each_unit
def test_systemd_finds_it_hardened(installed: Path, unit: Path) -> None:
    assert (FOLDER / EVERY).is_dir()
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", str(installed / instance(unit)))
    assert done.returncode == 0, done.stdout[-300:]
