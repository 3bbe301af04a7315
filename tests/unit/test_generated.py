"""Files that the program or a compiler writes are in the tree as they would be written now."""

import subprocess
import sys
from pathlib import Path

import brewctl
from brewctl.cli import reference
from brewctl.cli.main import root_command

ROOT = Path(brewctl.__file__).parent.parent


def test_the_reference_is_what_the_program_says() -> None:
    written = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert written == reference.page(root_command()), "run `make docs`"


def test_the_protobuf_modules_are_those_of_the_proto_file(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    subprocess.run([*compiler, *outputs, "brewctl/proto/orders.proto"], cwd=ROOT, check=True)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.rglob("*.py*")}
    there = {path.name: path.read_text("utf-8") for path in (ROOT / "brewctl" / "proto").glob("*_pb2*.py*")}
    assert made == there, "run `make proto`"
