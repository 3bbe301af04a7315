"""The real Prometheus: its program that checks, and a server that scrapes what a test runs."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from brewctl.lifecycle import wait_until
from brewctl.sandbox.processes import free_port

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "brew.rules.yml"
# By so much is every duration shorter in a test; a second stays the least.
_FASTER = 60
_UNITS = {"s": 1, "m": 60, "h": 1800}
_A_DAY_S = 86400


def program(name: str) -> str:
    """Return where `prometheus` or `promtool` is. Skips where it can't be had: it is a system package."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"no {name} here: apt-get install --no-install-recommends prometheus")
    return found


def promtool(*arguments: str, given: str = "", folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run(
        [program("promtool"), *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )


def faster(rules: str) -> str:
    """Return the rules as they are shipped, with half a minute for an hour and a second for a minute.

    So are the numbers that a metric in seconds is compared with, but for three seconds at least: consumers commit
    once a second, on a slow machine too. Days are three seconds.
    """
    rules = re.sub(r"(for: |\[)(\d+)([smh])\b", lambda found: f"{found[1]}{_shorter(found[2], found[3])}s", rules)
    return re.sub(r"(_seconds > )(\d+)", lambda found: f"{found[1]}{max(3, _shorter(found[2]))}", rules)


def _shorter(number: str, unit: str = "s") -> int:
    if unit == "s" and int(number) > _A_DAY_S:
        return 1
    return max(1, int(number) * _UNITS[unit] // _FASTER)


@dataclass
class Prometheus:
    """A running one."""

    url: str

    def ask(self, path: str, **query: str) -> Any:
        """Ask its HTTP API."""
        words = f"?{urllib.parse.urlencode(query)}" if query else ""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}{words}", timeout=10) as answer:
            return json.load(answer)["data"]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that fire."""
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]

    def firing(self, name: str, **labels: str) -> bool:
        """Say whether an alert of this name, with these labels at least, fires."""
        return any(labels.items() | {("alertname", name)} <= alert["labels"].items() for alert in self.alerts())


@contextlib.contextmanager
def scraping(jobs: Mapping[str, Sequence[str]], folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes these addresses every second, and has the shipped rules, faster."""
    port = free_port()
    (folder / RULES.name).write_text(faster(RULES.read_text("utf-8")), "utf-8")
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES.name],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
        ],
    }
    file = folder / "prometheus.json"  # JSON is YAML
    file.write_text(json.dumps(configuration), "utf-8")
    checked = promtool("check", "config", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    prometheus = Prometheus(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text("utf-8")
        with contextlib.suppress(OSError):
            return bool(prometheus.ask("status/runtimeinfo"))
        return False

    try:
        wait_until("a prometheus", answers, timeout_s=60)
        yield prometheus
    finally:
        process.kill()
        process.wait()
