"""Errors for users: one lower-case line, and the next command."""

import errno
import socket
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1  # the command failed, such as a check or a role
    USAGE = 2
    UNREACHABLE = 3  # PostgreSQL, Kafka or the order service can't be reached
    INTERRUPTED = 130


class BrewError(Exception):
    """A failure that the user can act on. `hint` is a command or a setting, without a full stop."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class UsageError(BrewError):
    """An option or a setting that can't be used."""

    exit_code = ExitCode.USAGE


class ModuleError(UsageError):
    """A module of the user that can't be imported. The exception's cause has the traceback."""


class UnreachableError(BrewError):
    """A server that doesn't answer."""

    exit_code = ExitCode.UNREACHABLE


class NotYetError(BrewError):
    """Tables, a topic or rights are missing, which another command makes. `--wait` waits for them."""


class PortError(BrewError):
    """A port that can't be listened on, with the reason that the system gives now.

    `host_option`, `port_option`: the options with which the user can choose others.
    """

    def __init__(self, host: str, port: int, *, host_option: str = "--host", port_option: str = "--port") -> None:
        reason = _reason_against(host, port)
        text = f" ({(reason.strerror or str(reason)).lower()})" if reason else ""
        hint = _other_place(reason, port, host_option, port_option)
        super().__init__(f"{self.words(host, port)}{text}", hint=hint)

    @staticmethod
    def words(host: str, port: int) -> str:
        """Return the message. The process that started this one looks for it in its log."""
        return f"port {port} on {host} can't be listened on"


def _reason_against(host: str, port: int) -> OSError | None:
    """Try to listen, and return the system's error; None if it works by now."""
    bare = host.strip("[]")
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            listener.bind(address)
            listener.listen()
    except OSError as error:
        return error
    return None


def _other_place(reason: OSError | None, port: int, host_option: str = "--host", port_option: str = "--port") -> str:
    if isinstance(reason, socket.gaierror) or (reason and reason.errno == errno.EADDRNOTAVAIL):
        return f"give {host_option} an address of this machine, such as 127.0.0.1"
    if reason and reason.errno in {errno.EACCES, errno.EPERM}:
        return f"choose a port above 1023 with {port_option}"
    if reason is None:  # the process that had the port has ended
        return f"run it again, or choose another with {port_option}"
    return f"see who has it with `ss -ltnp sport = :{port}`, or choose another with {port_option}"


class DrainTimeoutError(BrewError):
    """Work that did not end in time after a stop. Its threads still run, so the process must be ended."""
