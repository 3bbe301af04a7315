"""The version before this one, out of git: its package, run by the same Python with the same dependencies."""

import contextlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

# The last commit of the version before.
VERSION_BEFORE = "921f3d9"
_ROOT = Path(__file__).parents[2]


def package_of_the_version_before(folder: Path) -> Path:
    """Unpack it into a folder, and return that; skips where this is no clone with that commit."""
    try:
        archive = subprocess.run(
            ["git", "-C", str(_ROOT), "archive", VERSION_BEFORE, "brewctl"], capture_output=True, check=True, timeout=60
        ).stdout
    except FileNotFoundError:
        pytest.skip("the version before can't be run: there is no git")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        pytest.skip(f"the version before can't be run: commit {VERSION_BEFORE} is not in this clone ({said})")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        if hasattr(tarfile, "data_filter"):  # not in Python 3.11.0 to 3.11.3
            files.extraction_filter = tarfile.data_filter
        files.extractall(folder)
    return folder


def run_older(folder: Path, *arguments: str, env: Mapping[str, str]) -> str:
    """Run a command of the version before to its end, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "brewctl", *arguments],
        env={**os.environ, **env, "PYTHONPATH": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def older_nodes(folder: Path) -> Iterator[None]:
    """Nodes that are started in the block are of the version before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield
