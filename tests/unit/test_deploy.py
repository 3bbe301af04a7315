"""What is shipped for Prometheus and Grafana fits what is exported, and says what to do next."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.core

from brewctl.cli.main import root_command
from brewctl.exporter.families import FAMILIES
from brewctl.metrics.prometheus import BUCKETS, Instruments
from tests.prometheus import DEPLOY, RULES, faster, promtool

RULES_TEXT = RULES.read_text("utf-8")
TESTS_TEXT = (RULES.parent / "brew.rules.test.yml").read_text("utf-8")
DASHBOARD = json.loads((DEPLOY / "grafana" / "brew.json").read_text("utf-8"))
ALERTS = re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - alert|\n\n  - name|\Z)", RULES_TEXT, re.DOTALL)
RUNBOOK_FILE = DEPLOY.parent / "docs" / "runbook.md"
RUNBOOK = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK_FILE.read_text("utf-8"), re.DOTALL | re.MULTILINE))
each_alert = pytest.mark.parametrize(("name", "text"), ALERTS, ids=[name for name, _ in ALERTS])


def exported() -> set[str]:
    """The names of all series that a role or the exporter may have."""
    names = {family.name for family in FAMILIES}
    instruments = Instruments(role="order", version="1", shared=False)
    for make in (instruments.outbox, instruments.calls, lambda: instruments.inbox("inventory")):
        make()
    for metric in instruments._registry.collect():
        match metric.type:
            case "counter":
                names.add(f"{metric.name}_total")
            case "histogram":
                names |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
            case "info":
                names.add(f"{metric.name}_info")
            case _:
                names.add(metric.name)
    return names


def asked() -> Iterator[str]:
    """The expressions of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bbrew_[a-z0-9_]+", text))


def expressions(text: str) -> str:
    """Of a file of rules, all but the words for people."""
    return re.sub(r"annotations:\n(          .*\n| {12,}.*\n)*", "", text)


@pytest.mark.parametrize(
    "text", [expressions(RULES_TEXT), "\n".join(asked()), TESTS_TEXT], ids=["rules", "dashboard", "tests"]
)
def test_only_metrics_that_are_exported_are_asked_for(text: str) -> None:
    assert names_in(text)
    assert not names_in(text) - exported()


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert() -> None:
    ours = {
        name for name in exported() if name.startswith("brew_") and not name.endswith(("_sum", "_count", "_bucket"))
    }
    unused = ours - names_in("\n".join(asked())) - names_in(RULES_TEXT)
    assert unused == {"brew_exporter_look_seconds"}


def test_every_metric_of_ours_is_in_the_docs() -> None:
    ours = {re.sub("_(sum|count|bucket)$", "", name) for name in exported() if name.startswith("brew_")}
    assert not ours - names_in((DEPLOY.parent / "docs" / "observability.md").read_text("utf-8"))


def test_the_objective_is_one_of_the_histograms_buckets() -> None:
    found = set(re.findall(r'\ble="([^"]+)"', RULES_TEXT))
    assert found
    assert {float(each) for each in found} <= set(BUCKETS)
    assert all(each == str(float(each)) for each in found), "as the page writes it"


@each_alert
def test_an_alert_says_what_is_wrong_and_which_command_is_next(name: str, text: str) -> None:
    assert name.startswith("Brew")
    assert re.search(r"summary: \S", text)
    assert re.search(r"severity: (page|ticket)$", text, re.MULTILINE)
    description = re.search(r"description: >-\n(.*)\Z", text, re.DOTALL)
    assert description
    words = " ".join(description[1].split())
    assert "Next: " in words
    commands = re.findall(r"`brewctl ([^`]+)`", words)
    assert commands
    for command in commands:
        assert is_command(command.split()), command


def is_command(words: list[str]) -> bool:
    """Whether the words before the first option or argument call a command, and its options are there."""
    command: Any = root_command()
    while words and isinstance(command, typer.core.TyperGroup):
        command, words = command.commands.get(words[0]), words[1:]
    options = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
    return command is not None and {word for word in words if word.startswith("-")} <= options


def test_each_alert_has_its_section_of_the_runbook_and_each_section_its_alert() -> None:
    assert RUNBOOK.keys() == {name for name, _ in ALERTS}


@each_alert
def test_an_alert_names_its_section_which_says_what_to_look_at_and_to_do(name: str, text: str) -> None:
    assert re.search(rf"runbook: docs/runbook.md#{name.lower()}$", text, re.MULTILINE)
    section = RUNBOOK[name]
    (severity,) = re.findall(r"severity: (\w+)", text)
    assert section.startswith(f"**What it means.** {severity}. ")
    assert "\n**Look.** " in section
    assert "\n**Do.** " in section


def test_the_figures_for_sizing_are_ones_that_were_measured() -> None:
    page = (RUNBOOK_FILE.parent / "operations.md").read_text("utf-8")
    section = page.split("\n## Sizing\n")[1].split("\n## ")[0]
    told = set(re.findall(r"\d+,\d{3}|\d+\.\d+", section))
    measured = (RUNBOOK_FILE.parent / "performance.md").read_text("utf-8")
    assert told
    assert not {each for each in told if each not in measured}


@each_alert
def test_an_alert_is_tested(name: str, text: str) -> None:
    assert text
    assert f'alertname="{name}"' in TESTS_TEXT


def test_the_dashboard_asks_the_source_that_its_user_chooses() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "brew.rules.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "brew.rules.test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_takes_the_files(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments, folder=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


def test_prometheus_takes_the_dashboards_expressions(tmp_path: Any) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": each.replace("$__rate_interval", "1m")}
        for number, each in enumerate(asked())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=none", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_of_a_test_are_the_shipped_ones_but_faster() -> None:
    text = "for: 30s\n for: 15m\n[5m] [1h] x_seconds > 60\n y_seconds > 900\n ratio > 14.4 * 0.01"
    assert faster(text) == "for: 1s\n for: 15s\n[5s] [30s] x_seconds > 3\n y_seconds > 15\n ratio > 14.4 * 0.01"
