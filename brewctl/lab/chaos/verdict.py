"""Compare the answers that clients got to orders and cancels with the orders in PostgreSQL.

A call has one outcome for all of its tries: acknowledged, surely nothing written, or unknown. The same applies to a
cancel. That a cancelled order has its event and its effects is checked by `verify`.
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
    """Where answers and orders differ. `written`: how many orders exist of calls with an unknown outcome."""

    lost: list[str]  # ids of acknowledged orders that are missing, or differ from the acknowledgement
    refused_written: list[tuple[LoadCall, str]]  # refused calls, and the order that each wrote nevertheless
    written: int
    not_cancelled: list[str]  # ids of orders that are not cancelled although a cancel was acknowledged
    refused_cancelled: list[Cancel]  # refused cancels of orders that are cancelled nevertheless

    def findings(self) -> Iterator[str]:
        """Yield a line for the first ones of each kind."""
        for order_id in self.lost[:SHOWN]:
            yield f"order {order_id} was acknowledged and is not there"
        for call, order_id in self.refused_written[:SHOWN]:
            yield f"the call with the key {call.key} was refused ({_reason(call)}), and order {order_id} is there"
        for order_id in self.not_cancelled[:SHOWN]:
            yield f"the cancel of order {order_id} was acknowledged, and it is not cancelled"
        for cancel in self.refused_cancelled[:SHOWN]:
            yield f"the cancel of order {cancel.order_id} was refused ({_reason(cancel)}), and it is cancelled"


def compare(connection: Connection, calls: Sequence[LoadCall], cancels: Sequence[Cancel] = ()) -> Contradictions:
    """Compare the outcomes of calls and cancels with the orders in the database.

    All cancels of these orders must be among `cancels`.
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
    # If another cancel of the same order was not refused, that one may have cancelled it.
    by_another = {cancel.order_id for cancel in cancels if cancel.outcome != CallOutcome.FAILED}
    refused = [cancel for cancel in cancels if cancel.order_id in cancelled - by_another]
    return sorted(acknowledged - cancelled), refused


def counted(cancels: Sequence[Cancel], contradicted: Contradictions) -> CancelCounts:
    """Count the cancels' outcomes."""
    by_outcome = Counter(cancel.outcome for cancel in cancels)
    return CancelCounts(
        acknowledged=by_outcome[CallOutcome.ACKNOWLEDGED],
        refused=by_outcome[CallOutcome.FAILED],
        unknown=by_outcome[CallOutcome.UNKNOWN],
        not_cancelled=len(contradicted.not_cancelled),
        refused_cancelled=len(contradicted.refused_cancelled),
    )


def wrongly_parked(connection: Connection, *, cause: str) -> list[str]:
    """Return a line for each event that is still parked, or was parked although its effect was not refused.

    `cause`: text in the reasons of events whose effect was refused on purpose.
    """
    rows = connection.execute(queries["wrongly_parked"], {"cause": cause, "limit": SHOWN}).fetchall()
    return [
        f"outbox {outbox_id} {'is' if still else 'was'} parked by {group}: {reason[:120]}"
        for group, outbox_id, still, reason in rows
    ]


def _orders(connection: Connection, calls: Sequence[LoadCall]) -> dict[str, str]:
    """Return the ids of the orders that these calls wrote, by idempotency key."""
    parameters = {"tenant_id": acceptance.DEFAULT_TENANT, "keys": [call.key for call in calls]}
    return dict(connection.execute(queries["orders_of_keys"], parameters).fetchall())


def _reason(call: LoadCall | Cancel) -> str:
    return call.error.message[:120] if call.error else "without a reason"
