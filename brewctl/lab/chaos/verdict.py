"""What clients were told of their orders and cancels, against what PostgreSQL has of them.

A key's last word counts, with all of its tries: acknowledged, surely nothing written, or unknown. The same goes for the
cancels of an order; that a cancelled order has its event and its effects, `verify` checks of each of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brewctl.delivery.database import Connection
from brewctl.delivery.orders import acceptance
from brewctl.lab.chaos.result import CancelCounts
from brewctl.lab.load.cancels import Cancel
from brewctl.lab.load.load import CallOutcome, LoadCall
from brewctl.sql import queries

SHOWN = 5


@dataclass(frozen=True)
class Contradictions:
    """Where the two differ; `written`: how many orders there are of calls whose outcome is unknown."""

    lost: list[str]  # ids of orders that were acknowledged, and are not there or not as acknowledged
    refused_written: list[tuple[LoadCall, str]]  # calls that surely wrote nothing, and the order that each wrote
    written: int
    not_cancelled: list[str]  # ids of orders whose cancel was acknowledged, and that are not cancelled
    refused_cancelled: list[Cancel]  # cancels that surely wrote nothing, of orders that are cancelled

    def findings(self) -> Iterator[str]:
        """Name the first of them."""
        for order_id in self.lost[:SHOWN]:
            yield f"order {order_id} was acknowledged and is not there"
        for call, order_id in self.refused_written[:SHOWN]:
            yield f"the call with the key {call.key} was refused ({_reason(call)}), and order {order_id} is there"
        for order_id in self.not_cancelled[:SHOWN]:
            yield f"the cancel of order {order_id} was acknowledged, and it is not cancelled"
        for cancel in self.refused_cancelled[:SHOWN]:
            yield f"the cancel of order {cancel.order_id} was refused ({_reason(cancel)}), and it is cancelled"


def compare(connection: Connection, calls: Sequence[LoadCall], cancels: Sequence[Cancel] = ()) -> Contradictions:
    """Compare what the clients of these calls and cancels were told with the orders that there are.

    Nobody else may have cancelled one of these orders.
    """
    by_outcome: dict[CallOutcome, list[LoadCall]] = {outcome: [] for outcome in CallOutcome}
    for call in calls:
        by_outcome[call.outcome].append(call)
    acknowledged = by_outcome[CallOutcome.ACKNOWLEDGED]
    told = {"keys": [call.key for call in acknowledged], "ids": [call.order_id for call in acknowledged]}
    lost = connection.execute(
        queries["contradicted_calls"], {"tenant_id": acceptance.DEFAULT_TENANT, **told}
    ).fetchall()
    written = {
        outcome: _orders(connection, by_outcome[outcome]) for outcome in (CallOutcome.FAILED, CallOutcome.UNKNOWN)
    }
    refused = [
        (call, written[call.outcome][call.key])
        for call in by_outcome[CallOutcome.FAILED]
        if call.key in written[call.outcome]
    ]
    return Contradictions(
        [str(order_id) for (order_id,) in lost],
        refused,
        len(written[CallOutcome.UNKNOWN]),
        *_contradicted_cancels(connection, cancels),
    )


def _contradicted_cancels(connection: Connection, cancels: Sequence[Cancel]) -> tuple[list[str], list[Cancel]]:
    ids = list({cancel.order_id for cancel in cancels})
    cancelled = {order_id for (order_id,) in connection.execute(queries["cancelled_orders"], {"ids": ids})}
    acknowledged = {cancel.order_id for cancel in cancels if cancel.outcome == CallOutcome.ACKNOWLEDGED}
    # Where another cancel of the order was not refused, that one has cancelled it.
    by_another = {cancel.order_id for cancel in cancels if cancel.outcome != CallOutcome.FAILED}
    refused = [cancel for cancel in cancels if cancel.order_id in cancelled - by_another]
    return sorted(acknowledged - cancelled), refused


def counted(cancels: Sequence[Cancel], contradicted: Contradictions) -> CancelCounts:
    """Count what became of the cancels."""
    by_outcome = Counter(cancel.outcome for cancel in cancels)
    return CancelCounts(
        acknowledged=by_outcome[CallOutcome.ACKNOWLEDGED],
        refused=by_outcome[CallOutcome.FAILED],
        unknown=by_outcome[CallOutcome.UNKNOWN],
        not_cancelled=len(contradicted.not_cancelled),
        refused_cancelled=len(contradicted.refused_cancelled),
    )


def wrongly_parked(connection: Connection, *, cause: str) -> list[str]:
    """Name the events that are parked, and those that were though nothing was wrong with them.

    `cause` is in the reason of those events whose effect was refused on purpose.
    """
    rows = connection.execute(queries["wrongly_parked"], {"cause": cause, "limit": SHOWN}).fetchall()
    return [
        f"outbox {outbox_id} {'is' if still else 'was'} parked by {group}: {reason[:120]}"
        for group, outbox_id, still, reason in rows
    ]


def _orders(connection: Connection, calls: Sequence[LoadCall]) -> dict[str, str]:
    """Return the orders that the keys of these calls made."""
    parameters = {"tenant_id": acceptance.DEFAULT_TENANT, "keys": [call.key for call in calls]}
    return dict(connection.execute(queries["orders_of_keys"], parameters).fetchall())


def _reason(call: LoadCall | Cancel) -> str:
    return call.error.message[:120] if call.error else "without a reason"
