"""What clients were told of their orders, against what PostgreSQL has of them.

A key's last word counts, with all of its tries: acknowledged, surely nothing written, or unknown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brewctl.delivery import orders
from brewctl.delivery.database import Connection
from brewctl.lab.load import Call, Outcome
from brewctl.sql import queries

SHOWN = 5


@dataclass(frozen=True)
class Contradictions:
    """Where the two differ; `written`: how many orders there are of calls whose outcome is unknown."""

    lost: list[str]  # ids of orders that were acknowledged, and are not there or not as acknowledged
    refused_written: list[tuple[Call, str]]  # calls that surely wrote nothing, and the order that each wrote
    written: int

    def findings(self) -> Iterator[str]:
        """Name the first of them."""
        for order_id in self.lost[:SHOWN]:
            yield f"order {order_id} was acknowledged and is not there"
        for call, order_id in self.refused_written[:SHOWN]:
            yield f"the call with the key {call.key} was refused ({_reason(call)}), and order {order_id} is there"


def compare(connection: Connection, calls: Sequence[Call]) -> Contradictions:
    """Compare what the clients of these calls were told with the orders that there are."""
    by_outcome: dict[Outcome, list[Call]] = {outcome: [] for outcome in Outcome}
    for call in calls:
        by_outcome[call.outcome].append(call)
    acknowledged = by_outcome[Outcome.ACKNOWLEDGED]
    told = {"keys": [call.key for call in acknowledged], "ids": [call.order_id for call in acknowledged]}
    lost = connection.execute(queries["contradicted_calls"], {"tenant_id": orders.DEFAULT_TENANT, **told}).fetchall()
    written = {outcome: _orders(connection, by_outcome[outcome]) for outcome in (Outcome.FAILED, Outcome.UNKNOWN)}
    refused = [
        (call, written[call.outcome][call.key])
        for call in by_outcome[Outcome.FAILED]
        if call.key in written[call.outcome]
    ]
    return Contradictions([str(order_id) for (order_id,) in lost], refused, len(written[Outcome.UNKNOWN]))


def _orders(connection: Connection, calls: Sequence[Call]) -> dict[str, str]:
    """Return the orders that the keys of these calls made."""
    parameters = {"tenant_id": orders.DEFAULT_TENANT, "keys": [call.key for call in calls]}
    return dict(connection.execute(queries["orders_of_keys"], parameters).fetchall())


def _reason(call: Call) -> str:
    return call.error.message[:120] if call.error else "without a reason"
