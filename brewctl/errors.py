"""What can go wrong, in the user's words: one lower-case line, and the next command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1  # what was asked failed: a check, a role
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


class UnreachableError(BrewError):
    """A server that doesn't answer."""

    exit_code = ExitCode.UNREACHABLE


class PortError(BrewError):
    """A port that can't be listened on."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(self.words(host, port), hint="is it taken? choose another with --port")

    @staticmethod
    def words(host: str, port: int) -> str:
        """Say so of a port; who started the process finds it in its log."""
        return f"port {port} on {host} can't be listened on"


class DrainTimeoutError(BrewError):
    """Work that would not end after a stop was asked for. Its threads still run: the process must be left."""
