"""Start-up time of the command line. Floor: programs that import the same libraries and nothing else."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from brewctl.errors import BrewError
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.ground import Ground, empty_handler

_RUNS = 15
_TINY = """
import typer
app = typer.Typer(rich_markup_mode="rich")
@app.command()
def one(name: str = ""): "A command."
@app.command()
def two(name: str = ""): "Another."
app()
"""
# The libraries that `create-order` needs: typer, rich, and a gRPC client.
_CLIENT = """
import typer, rich
app = typer.Typer()
@app.command()
def one(name: str = ""):
    import grpc
    from brewctl.proto import orders_pb2_grpc
@app.command()
def two(): pass
app()
"""


def run(ground: Ground) -> Iterator[Figure]:
    """Measure `--help` and `create-order`; runs of each alternate with runs of its floor."""
    ground.tell("start-up")
    help_ms, tiny_ms = _medians(["-P", "-m", "brewctl", "--help"], ["-P", "-c", _TINY, "--help"])
    yield Figure("brewctl --help", help_ms, "ms", tiny_ms, "an empty Typer app's", at_most=1.5)
    with empty_handler() as address:
        order = ["-P", "-m", "brewctl", "create-order", "--customer", "c1", "--addr", address]
        order_ms, client_ms = _medians(order, ["-P", "-c", _CLIENT, "one", "--name", "c1"])
    yield Figure("brewctl create-order", order_ms, "ms", client_ms, "a Typer app's with grpc", at_most=1.5)


def _medians(*commands: Sequence[str]) -> list[float]:
    """Run the commands in turn; return the median milliseconds of each."""
    took: list[list[float]] = [[] for _ in commands]
    for _ in range(_RUNS):
        for command, each in zip(commands, took, strict=True):
            began = time.perf_counter()
            whole = [sys.executable, *command]
            done = subprocess.run(whole, capture_output=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603
            each.append((time.perf_counter() - began) * 1000)
            if done.returncode:
                raise BrewError(f"`{' '.join(command)}` failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return [statistics.median(each) for each in took]
