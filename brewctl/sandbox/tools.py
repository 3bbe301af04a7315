"""pgbench and Kafka's performance tools, which measure the floors of the bench."""

import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from brewctl.errors import BrewError
from brewctl.sandbox import kafka, postgres, surroundings

_TIMEOUT_S = 180.0
_PROCESSED = re.compile(r"transactions actually processed: (\d+)")
_TPS = re.compile(r"tps = ([\d.]+)")
_LATENCY = re.compile(r"latency average = ([\d.]+) ms")
_SENT = re.compile(r"records sent, ([\d.]+) records/sec")


@dataclass(frozen=True)
class Transactions:
    """The result of a pgbench run."""

    per_s: float
    latency_ms: float  # on average
    median_ms: float  # 0 unless `each` was set


def pgbench(url: str, script: Path, *, clients: int, seconds: int, each: bool = False) -> Transactions | None:
    """Run an SQL script with pgbench; None if no transaction ended within the time. Raises BrewError.

    The `seconds` include connecting. `each`: log each transaction's duration, for the median.
    """
    command: list[str | Path] = [
        postgres.binary("pgbench"),
        "-n",
        "-M",
        "prepared",
        "-c",
        str(clients),
        "-T",
        str(seconds),
        "-f",
        script,
    ]
    with tempfile.TemporaryDirectory() as folder:
        said = _run(
            [*command, *(["-l", f"--log-prefix={folder}/each"] if each else [])],
            env={**_surroundings(url), "PGDATABASE": url},
        )
        median_ms = _median_ms(Path(folder))
    if (processed := _PROCESSED.search(said)) and int(processed[1]) == 0:
        return None
    per_s, latency = _TPS.search(said), _LATENCY.search(said)
    if not per_s or not latency:
        raise BrewError(f"pgbench says nothing of use: {said.strip()[-200:]}")
    return Transactions(float(per_s[1]), float(latency[1]), median_ms)


def _median_ms(folder: Path) -> float:
    """Return the median of the transactions in pgbench's logs: the third field of each line, in microseconds."""
    took = [int(line.split()[2]) for log in folder.iterdir() for line in log.read_text("ascii").splitlines()]
    return statistics.median(took) / 1000 if took else 0.0


def _surroundings(url: str) -> Mapping[str, str]:
    """Return the environment of a PostgreSQL client. The user's PG* variables are for the user's own servers only."""
    place = conninfo_to_dict(url)
    complete = place.get("host") == "127.0.0.1" and place.get("password")
    return surroundings.environment() if complete else os.environ


class KafkaTools:
    """Kafka's producer and consumer performance tools, in Java."""

    def __init__(self, brokers: Sequence[str]) -> None:
        """Download missing jars. Raises BrewError."""
        self._tools = kafka.tools()
        self._brokers = ",".join(brokers)

    def produce(self, topic: str, *, records: int, size: int) -> float:
        """Send records of `size` bytes, acknowledged by all replicas; return records a second."""
        said = self._call(
            "ProducerPerformance",
            *("--topic", topic, "--num-records", str(records), "--record-size", str(size), "--throughput", "-1"),
            *("--command-property", f"bootstrap.servers={self._brokers}", "acks=all"),
        )
        if not (rates := _SENT.findall(said)):
            raise BrewError(f"kafka's ProducerPerformance says nothing of use: {said.strip()[-200:]}")
        return float(rates[-1])

    def consume(self, topic: str, *, records: int) -> float:
        """Read records; return records a second, from the first fetch on."""
        said = self._call(
            "ConsumerPerformance",
            *("--bootstrap-server", self._brokers, "--topic", topic, "--num-records", str(records)),
        )
        try:
            return float(said.strip().splitlines()[-1].split(",")[-1])
        except (IndexError, ValueError):
            raise BrewError(f"kafka's ConsumerPerformance says nothing of use: {said.strip()[-200:]}") from None

    def _call(self, tool: str, *arguments: str) -> str:
        tools = self._tools
        command = [*tools.java, f"org.apache.kafka.tools.{tool}", *arguments]
        return _run(command, env=tools.environment, cwd=tools.folder)


def _run(command: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None) -> str:
    try:
        done = surroundings.run(command, cwd=cwd, env=env, timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BrewError(f"{Path(command[0]).name} did not end within {_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise BrewError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
