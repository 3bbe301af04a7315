"""The image's file: what it is built of, and how it runs. No engine builds it here; test_image.py plays its steps."""

import json
import re
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from tests.deploying import ROOT, check

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STEPS: list[dict[str, Any]] = DockerfileParser(path=str(ROOT / "Dockerfile"), env_replace=False).structure
STEPS = [step for step in STEPS if step["instruction"] != "COMMENT"]
STARTS = [number for number, step in enumerate(STEPS) if step["instruction"] == "FROM"]
LAST = STEPS[STARTS[-1] :]


def last(instruction: str) -> str:
    """The value of an instruction that stands once in the last stage."""
    (value,) = [step["value"] for step in LAST if step["instruction"] == instruction]
    return str(value)


def ignored(name: str) -> bool:
    """Whether a file at the top is kept from the engine: the last line that fits it has the say."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    out = False
    for line in (each.strip() for each in lines if each and not each.startswith("#")):
        if fnmatch(name, line.removeprefix("!")):
            out = not line.startswith("!")
    return out


def test_each_instruction_is_one_that_an_engine_knows() -> None:
    known = {
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "RUN",
        "STOPSIGNAL",
        "USER",
        "WORKDIR",
    }
    assert {step["instruction"] for step in STEPS} <= known
    assert len(STARTS) == 2, "what builds is not in the image"


def test_both_stages_have_the_same_python_which_is_one_that_the_project_takes() -> None:
    (argument,) = [step["value"] for step in STEPS if step["instruction"] == "ARG"]
    name, _, version = argument.partition("=")
    images = {STEPS[start]["value"].split()[0] for start in STARTS}
    assert images == {f"python:${{{name}}}-slim-bookworm"}
    least = re.findall(r"\d+", PROJECT["requires-python"])
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least[:2]))


def test_it_is_installed_with_extras_for_production_and_the_pinned_versions() -> None:
    commands = "\n".join(step["value"] for step in STEPS if step["instruction"] == "RUN")
    extras = {extra for found in re.findall(r"\[([a-z,]+)\]", commands) for extra in found.split(",")}
    assert extras == PROJECT["optional-dependencies"].keys() - {"audit", "dev", "sandbox"}
    assert "--constraint constraints.txt" in commands
    assert "--no-index" in commands, "what is installed is what was built"


def test_what_it_copies_is_there_and_is_handed_to_the_engine_and_no_more() -> None:
    sources = [
        source
        for step in STEPS
        if step["instruction"] == "COPY" and not step["value"].startswith("--from")
        for source in step["value"].split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert not ignored(source)
    handed = {path.name for path in ROOT.iterdir() if not ignored(path.name)}
    assert handed == set(sources)


def test_it_runs_as_an_ordinary_user_and_a_stop_drains() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last("USER")), "a number, so that Kubernetes can tell"
    assert last("STOPSIGNAL") == "SIGTERM"
    assert json.loads(last("ENTRYPOINT")) == ["brewctl"], "no shell between the engine and the role"
    assert json.loads(last("CMD")) == ["--help"]
    assert not [step for step in LAST if step["instruction"] == "RUN"], "nothing is written in the last stage"


def test_the_commands_of_the_docs_are_ones_that_the_program_takes() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    lines = re.findall(r"docker run [^\n]*?registry\.example/brewctl:\S+ ([^\n]+)", text)
    assert lines
    for line in lines:
        check(line.split())


@pytest.mark.parametrize("name", [".git", "tests", "deploy", "secrets", ".venv", "docs"])
def test_what_is_none_of_the_images_business_is_kept_out(name: str) -> None:
    assert ignored(name)
