"""Load from several processes: one Python process can't make more than some thousand calls a second.

Each runs `python -m brewctl.lab.bench.client`: it reports that it is ready, begins at a line on its stdin, and writes
its result to stdout.
"""

import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence

from brewctl.errors import BrewError
from brewctl.lab.load.measure import LoadResult, together

READY = b"ready\n"
GO = b"go\n"
_LATE_S = 60.0


def load(
    address: str, *, clients: int, in_flight: int, connections: int, warmup_s: float, duration_s: float
) -> tuple[LoadResult, float]:
    """Load an order-service with `clients` processes, each with `in_flight` calls over `connections` connections.

    Returns the result of all together, and the orders a second. Raises BrewError with the output of a failed client.
    """
    asked = {
        "addresses": [address],
        "concurrency": in_flight,
        "connections": connections,
        "warmup_s": warmup_s,
        "duration_s": duration_s,
    }
    with _started(clients, json.dumps(asked)) as processes:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise _failed(process)
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: `_result` reports why
                process.stdin.write(GO)
                process.stdin.flush()
        results = [_result(process, within_s=warmup_s + duration_s + _LATE_S) for process in processes]
    return together(results), sum(result.rate_per_s for result in results)


@contextlib.contextmanager
def _started(count: int, asked: str) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Start clients; kill those that still run after the block."""
    with contextlib.ExitStack() as running:
        processes = []
        for _ in range(count):
            process = running.enter_context(
                subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-P", "-m", "brewctl.lab.bench.client", asked],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # so that a Ctrl-C reaches only this process
                )
            )
            running.callback(process.kill)
            processes.append(process)
        yield processes


def _result(process: subprocess.Popen[bytes], *, within_s: float) -> LoadResult:
    try:
        said, words = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        raise BrewError(f"a load client did not end within {within_s:g} s") from None
    if process.returncode:
        raise _failed(process, words)
    result = pickle.loads(said)  # noqa: S301 - our own process wrote it
    assert isinstance(result, LoadResult)
    return result


def _failed(process: subprocess.Popen[bytes], words: bytes = b"") -> BrewError:
    if not words:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, words = process.communicate(timeout=_LATE_S)
    last = words.decode(errors="replace").strip().rpartition("\n")[2]
    return BrewError(f"a load client failed: {last[-300:] or f'it ended with {process.returncode}'}")
