"""Which servers of the sandbox run and answer."""

from dataclasses import dataclass
from pathlib import Path

from brewctl.sandbox import kafka, postgres, processes, state


@dataclass(frozen=True)
class ServerHealth:
    """One server of the sandbox."""

    name: str
    pid: int | None  # None if it doesn't run
    port: int
    memory_bytes: int
    answers: bool
    log: str
    secured: bool  # it takes no connection without TLS and a password


def of_servers(home: Path) -> list[ServerHealth]:
    """Ask every server of the sandbox; empty without a sandbox."""
    known = state.load(home)
    if known is None or not known.has_sandbox:
        return []
    answering = kafka.answering(known) if known.servers else set()
    rows = []
    for name, (port, *_) in known.ports.items():
        server = known.servers.get(name)
        process = processes.find(server) if server else None
        answers = False
        if process:
            answers = not postgres.refusal(known.database_url) if name == "postgres" else name in answering
        rows.append(
            ServerHealth(
                name=name,
                pid=process.pid if process else None,
                port=port,
                memory_bytes=processes.memory(process) if process else 0,
                answers=answers,
                log=server.log if server else "",
                secured=known.secure,
            )
        )
    return rows
