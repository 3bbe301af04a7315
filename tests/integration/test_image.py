"""The image's promises, without an engine: no home, nothing written but to TMPDIR, no capability, one signal drains.

A role runs in a mount namespace whose every file system is read-only, as with `--read-only --tmpfs /tmp`. Its program
is that of this environment. With BREW_TEST_IMAGE=1 it is one that the Dockerfile's own RUN steps have made, with
/usr/bin/python3, which takes a minute, and user 10001 runs it.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from tests.conftest import BREWCTL, Rig
from tests.deploying import ROOT

STEPS: list[dict[str, Any]] = DockerfileParser(path=str(ROOT / "Dockerfile"), env_replace=False).structure
USER = "10001"
PYTHON = "/usr/bin/python3"
ROLES = {
    "order": ("serve", "order", "--port", "0", "--workers", "2", "--http", "127.0.0.1:0"),
    "publisher": ("publish", "--http", "127.0.0.1:0"),
    "inventory": ("consume", "inventory", "--http", "127.0.0.1:0"),
    "metrics": ("metrics", "--http", "127.0.0.1:0"),
}
WORKS = {
    "order": "[order-1] order-service listening on ",
    "publisher": "publisher started",
    "inventory": "partitions assigned",
    "metrics": "http serves",
}
# Everything but what the kernel shows is read-only; a small file system in memory is all that can be written to.
READ_ONLY = """
set -e
for place in $(awk '$2 !~ "^/(proc|sys|dev)(/|$)" {print $2}' /proc/mounts); do
  mount -o remount,bind,ro "$place" 2>/dev/null || true
done
if touch "$TMPDIR/written" 2>/dev/null; then exit 97; fi
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$TMPDIR"
exec "$@"
"""


def values(instruction: str) -> list[str]:
    return [str(step["value"]) for step in STEPS if step["instruction"] == instruction]


def environment() -> dict[str, str]:
    """What the image sets, but for its PATH."""
    words = [each.split("=", 1) for value in values("ENV") for each in shlex.split(value)]
    return {name: value for name, value in words if name != "PATH"}


@pytest.fixture(scope="module")
def installed() -> Iterator[tuple[str, list[str]]]:
    """The program, and what runs it as another user."""
    drops = ["setpriv", "--no-new-privs"]
    if os.geteuid() == 0:
        drops += ["--bounding-set", "-all", "--inh-caps", "-all"]
    if os.environ.get("BREW_TEST_IMAGE") != "1":
        yield BREWCTL, drops
        return
    with tempfile.TemporaryDirectory(prefix="brewctl-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        play(folder)
        yield str(folder / "opt" / "bin" / "brewctl"), [*drops, "--reuid", USER, "--regid", USER, "--clear-groups"]


def play(folder: Path) -> None:
    """Do what the Dockerfile says before its last stage, in a folder instead of an image."""
    source, program = folder / "src", folder / "opt"
    source.mkdir()
    for value in values("COPY"):
        *names, _ = value.split()
        for each in (ROOT / name for name in names if not value.startswith("--from")):
            if each.is_dir():
                shutil.copytree(each, source / each.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(each, source)
    for command in values("RUN"):
        here = command.replace("/opt/brewctl", str(program)).replace("/wheels", str(folder / "wheels"))
        here = re.sub(r"(^|&& )(pip|python) ", rf"\1{PYTHON} -m \2 ", here).replace("-m python -m", "-m")
        # As root where there is nobody else: the image's files are root's, too.
        subprocess.run(["sh", "-euc", here], cwd=source, check=True, timeout=600)
    subprocess.run(["chmod", "-R", "a-w", str(program)], check=True)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Where the role's own file system in memory is, which any user reaches."""
    with tempfile.TemporaryDirectory(prefix="brewctl-memory-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def isolated(memory: Path) -> list[str]:
    """What runs a command with all of the disk read-only; skips where no namespace can be had."""
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *options, "sh", "-c", READ_ONLY, "sh"]
        with contextlib.suppress(FileNotFoundError):
            tried = subprocess.run(
                [*command, "true"],
                env=os.environ | {"TMPDIR": str(memory)},
                capture_output=True,
                check=False,
                timeout=30,
            )
            if tried.returncode == 0:
                return command
    pytest.skip("no mount namespace can be made here")


@contextlib.contextmanager
def role(
    rig: Rig, folder: Path, isolated: list[str], installed: tuple[str, list[str]], name: str, **env: str
) -> Iterator["subprocess.Popen[str]"]:
    """A role below the read-only root, in a working directory of root's, without a home."""
    program, drops = installed
    node = () if name == "metrics" else ("--node", f"{name}-1")
    named = {key: value for key, value in rig.env.items() if value}
    with subprocess.Popen(
        [*isolated, *drops, program, *ROLES[name], *node],
        env={**environment(), **named, "TMPDIR": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "80", **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read its lines until one has this text."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError("".join(lines))


def address(line: str) -> str:
    return line.rsplit(maxsplit=1)[-1]


@pytest.mark.parametrize("name", ROLES)
def test_a_role_works_where_it_can_write_nothing_and_one_signal_drains_it(
    rig: Rig, memory: Path, isolated: list[str], installed: tuple[str, list[str]], name: str
) -> None:
    with role(rig, memory, isolated, installed, name) as process:
        at = address(read_until(process, "http serves"))
        if name != "metrics":
            read_until(process, WORKS[name])
        for page in ("/metrics", "/livez"):
            with urllib.request.urlopen(f"http://{at}{page}", timeout=30) as answer:
                assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "level=error" not in said


def test_the_images_health_check_says_what_the_role_says(
    rig: Rig, memory: Path, isolated: list[str], installed: tuple[str, list[str]]
) -> None:
    (check,) = values("HEALTHCHECK")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "python"

    def healthy(at: str) -> bool:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"BREW_HTTP": at},
            capture_output=True,
            check=False,
            timeout=60,
        )
        return done.returncode == 0

    assert healthy(""), "a role that shows nothing is not asked"
    with role(rig, memory, isolated, installed, "publisher") as process:
        at = address(read_until(process, "http serves"))
        assert healthy(at)
        assert healthy(at.replace("127.0.0.1", "0.0.0.0"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert not healthy(at)
