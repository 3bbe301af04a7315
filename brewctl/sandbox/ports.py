"""The ports of a new sandbox."""

from typing import TypedDict

from brewctl.sandbox.processes import free_port


class ChosenPorts(TypedDict):
    """Ports as the sandbox's state names them."""

    postgres_port: int
    kafka_ports: list[tuple[int, int]]
    kafka_internal: list[int]
    kafka_detours: list[tuple[int, int]]


def choose(brokers: int, *, secure: bool, postgres: int | None = None, kafka: int | None = None) -> ChosenPorts:
    """Choose free ports, but for those that the user has: of PostgreSQL, and of the first broker, which others follow.

    Another program may take one before its server listens. Raises BrewError where none is free.
    """
    numbers = range(brokers)
    return {
        "postgres_port": postgres or free_port(),
        "kafka_ports": [(kafka + number if kafka else free_port(), free_port()) for number in numbers],
        "kafka_internal": [free_port() for _ in numbers] if secure else [],
        "kafka_detours": [(free_port(), free_port()) for _ in numbers],
    }
