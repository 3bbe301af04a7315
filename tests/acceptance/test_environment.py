"""The installed program in shells that set what servers, libraries and Python obey: all of its own starts."""

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import psutil
import pytest

from brewctl.lifecycle import wait_until
from tests.acceptance.conftest import brewctl, environment, pid, status
from tests.conftest import BREWCTL, run

NOWHERE = "http://127.0.0.1:9"
SHELL = {
    # For the web; gRPC obeys them too.
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"), NOWHERE),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
    # For every Java program, and for Kafka's scripts.
    **dict.fromkeys(("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "KAFKA_OPTS"), "-Xbogus"),
    **dict.fromkeys(("CLASSPATH", "JAVA_HOME", "BASH_ENV", "ENV"), "/nowhere"),
    # For the user's own PostgreSQL.
    **dict.fromkeys(("PGDATA", "PGHOST", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGPASSFILE"), "/nowhere"),
    "PGPORT": "1",
    "PGOPTIONS": "-c search_path=nowhere",
    "PGSSLMODE": "require",
    "PGHOSTADDR": "127.0.0.9",
    "PGSERVICE": "nowhere",
    "PGSERVICEFILE": "/nowhere",
    "PGCLIENTENCODING": "LATIN1",
    # Engines of libraries that other programs are installed with.
    "PSYCOPG_IMPL": "c",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "cpp",
    "GRPC_POLL_STRATEGY": "nowhere",
    # A terminal of long ago, or none.
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii:strict",
    "TERM": "dumb",
    "COLUMNS": "20",
    "TZ": "nonsense",
    "LANGUAGE": "de",
    "TMPDIR": "/nowhere",
    "IFS": "/",
    "PYTHONWARNINGS": "error",
    "PYTHONSTARTUP": "/nowhere",
    "PYTHONDONTWRITEBYTECODE": "1",
    "CDPATH": "/",
}
STRANGE = "café, b\\n c:\"$x%20${sys:y}#?;'\n!"
# A user whom /etc/passwd does not know, as in `docker run -u 12345`.
NOBODY = 54_321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")


def linked(cache: Path) -> Path:
    """Fill a cache folder with what a first `up` of this user downloaded."""
    for folder in platformdirs.user_cache_path("brewctl").glob("kafka-*"):
        shutil.copytree(folder, cache / "brewctl" / folder.name, copy_function=_link)
    return cache


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


@pytest.mark.usefixtures("home")  # which has filled the user's cache
def test_all_that_is_its_own_works_in_a_strange_shell_and_a_strange_folder(tmp_path: Path) -> None:
    place = tmp_path / "place"
    cache = linked(place / f"{STRANGE}~cache")
    for module in ("kafka", "grpc", "psycopg", "brewctl", "rich"):
        (place / f"{module}.py").write_text("raise SystemExit('a file in the working directory was imported')")
    before = {path.name for path in place.iterdir()}
    env = {**SHELL, "BREW_HOME": str(place / STRANGE), "XDG_CACHE_HOME": str(cache)}
    try:
        for command in (("up", "--brokers", "1"), ("start", "order", "inventory"), ("create-order", "--customer", "c")):
            ended = run_there(place, *command, env=env)
            assert ended.returncode == 0, ended.stderr
            assert "Error" not in ended.stderr
        wait_until(
            "a reservation", lambda: "reservations=1" in run_there(place, "counts", env=env).stdout, timeout_s=60
        )
        rows = json.loads(run_there(place, "status", "--json", env=env).stdout)
        assert all(row.get("answers", row.get("state") == "runs") for row in rows), rows
        findings = json.loads(run_there(place, "doctor", "--json", env=env).stdout)["findings"]
        found = {finding["check"]: finding["found"] for finding in findings if finding["verdict"] == "ok"}
        assert {"postgres", "kafka", "order-service", "sandbox"} <= found.keys(), findings
    finally:
        assert run_there(place, "down", "--purge", env=env).returncode == 0
    assert {path.name for path in place.iterdir()} == before | {STRANGE}
    assert {path.name for path in (place / STRANGE).iterdir()} == {"lock"}


def run_there(place: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the installed program in a folder."""
    return subprocess.run(
        [BREWCTL, *arguments],
        cwd=place,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder of a user without a name, who can read where it is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        os.chown(folder, NOBODY, NOBODY)
        yield folder


def as_nobody(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program as that user, with these variables alone."""
    setpriv = shutil.which("setpriv") or pytest.skip("setpriv is not installed")
    command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", BREWCTL]
    return subprocess.run(
        [*command, *arguments],
        cwd="/",
        env={"PATH": os.environ["PATH"], **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@as_root
@pytest.mark.usefixtures("home")
def test_a_user_without_a_name_starts_servers_from_a_cache_that_only_root_writes(folder_of_nobody: Path) -> None:
    if as_nobody("--version").returncode:
        pytest.skip("another user can't read this checkout")
    cache = folder_of_nobody / "cache"
    cache.mkdir()
    linked(cache)
    for path in (cache / "brewctl").rglob("*"):
        # Files are the user's own by another name: programs among them stay programs.
        path.chmod(path.stat().st_mode | (0o555 if path.stat().st_mode & stat.S_IXUSR else 0o444))
    (cache / "brewctl").chmod(0o755)
    env = {"HOME": "/", "BREW_HOME": str(folder_of_nobody / "home"), "XDG_CACHE_HOME": str(cache)}
    up = as_nobody("up", "--brokers", "1", **env)
    if "has no entry in /etc/passwd" in up.stderr:
        pytest.skip("this machine gives users no namespaces of their own")
    try:
        assert up.returncode == 0, up.stderr
        assert as_nobody("status", **env).returncode == 0
        pids = [row["pid"] for row in json.loads(as_nobody("status", "--json", **env).stdout)]
        assert {psutil.Process(pid).uids().real for pid in pids} == {NOBODY}
    finally:
        assert as_nobody("down", "--purge", **env).returncode == 0


@as_root
@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "set BREW_HOME to a folder of yours"),
        ({"HOME": "/"}, "set BREW_HOME to a folder of yours"),
        ({"HOME": "/", "BREW_HOME": "HERE"}, "set XDG_CACHE_HOME to a folder of yours"),
        ({"BREW_HOME": "HERE"}, "set XDG_CACHE_HOME to a folder of yours"),
    ],
)
def test_a_user_without_a_folder_is_told_which_variable_names_one(
    folder_of_nobody: Path, env: dict[str, str], named: str
) -> None:
    if as_nobody("--version").returncode:
        pytest.skip("another user can't read this checkout")
    env = {name: value.replace("HERE", str(folder_of_nobody / "home")) for name, value in env.items()}
    refused = as_nobody("up", "--brokers", "1", **env)
    if "has no entry in /etc/passwd" in refused.stderr:
        pytest.skip("this machine gives users no namespaces of their own")
    assert refused.returncode in {1, 2}
    assert refused.stderr.count("\n") == 1
    assert named in refused.stderr


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"BREW_HOME": "HERE/caf\udce9"}, r"no UTF-8: set BREW_HOME to another folder"),
        ({"BREW_HOME": f"HERE/{'d' * 250}/{'d' * 250}/{'d' * 250}/{'d' * 250}"}, r"set BREW_HOME to another folder"),
        ({"XDG_CACHE_HOME": "HERE/wow!"}, r"set XDG_CACHE_HOME to another folder"),
        ({"XDG_CACHE_HOME": "HERE/file"}, r"file/brewctl.* can't be used .*: set XDG_CACHE_HOME to a folder of yours"),
        ({"XDG_CACHE_HOME": "HERE", "BREW_MAVEN_REPOSITORY": "maven.example"}, r"BREW_MAVEN_REPOSITORY is no http"),
        (
            {"XDG_CACHE_HOME": "HERE", "https_proxy": NOWHERE, "no_proxy": "", "NO_PROXY": ""},
            r"can't download .* from Maven Central: the proxy in https_proxy does not let it through",
        ),
    ],
)
def test_what_keeps_the_sandbox_from_starting_is_one_line_that_names_the_variable(
    tmp_path: Path, env: dict[str, str], line: str
) -> None:
    (tmp_path / "file").write_text("")
    env = {name: value.replace("HERE", str(tmp_path)) for name, value in env.items()}
    clean = {"BREW_HOME": str(tmp_path / "home"), "HTTPS_PROXY": "", "BREW_MAVEN_REPOSITORY": ""}
    refused = run("up", "--brokers", "1", env={**clean, **env})
    assert refused.returncode in {1, 2}
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("brewctl: ")
    assert re.search(line, last)
    assert not list(tmp_path.rglob("*.jar"))
    assert not [process for process in psutil.process_iter() if works_in(process, tmp_path)]


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False


def test_a_lock_of_a_killed_postgres_whose_pid_is_another_program_is_named_and_mended(home: Path) -> None:
    """As after a restart of the machine, or of a container: the numbers begin again."""
    killed = psutil.Process(pid(home, "postgres"))
    killed.kill()
    wait_until("its end", lambda: status(home)["postgres"]["pid"] is None, timeout_s=20)
    lock = home / "postgres" / "data" / "postmaster.pid"
    # PostgreSQL believes in processes of its own user alone.
    owner = {"user": "nobody"} if os.geteuid() == 0 else {}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **owner) as stranger:  # type: ignore[call-overload]
        lock.write_text("\n".join([str(stranger.pid), *lock.read_text().splitlines()[1:]]) + "\n")
        doctor = brewctl(home, "doctor").stdout
        assert f"process {stranger.pid}" in " ".join(doctor.split())
        up = brewctl(home, "up")
        assert up.returncode == 0, up.stderr
        assert stranger.poll() is None
        stranger.communicate()
    assert status(home)["postgres"]["answers"]
    assert brewctl(home, "counts").returncode == 0


def test_a_password_that_is_not_the_servers_is_said_at_once(home: Path) -> None:
    """A state file that was lost, and data that were not."""
    path = home / "state.json"
    before = path.read_text()
    password = json.loads(before)["password"]
    try:
        assert brewctl(home, "down").returncode == 0
        path.write_text(path.read_text().replace(password, "guessed"))
        refused = brewctl(home, "up")
    finally:
        path.write_text(path.read_text().replace("guessed", password))
    assert refused.returncode == 1
    assert "postgres does not take the password in this home's state.json" in refused.stderr
    assert "brewctl down --purge" in refused.stderr
    assert brewctl(home, "up").returncode == 0
    assert environment(home)["BREW_DATABASE_URL"]
