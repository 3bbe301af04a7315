"""A downstream as it is declared: what its annotation says, and what is refused, in plain words."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, Union

import pytest

from brewctl.delivery.downstream import Downstream, Later, downstream
from brewctl.delivery.events import Event
from brewctl.errors import UsageError
from brewctl.proto.orders_pb2 import OrderCancelled, OrderCreated

CREATED, CANCELLED = "order.created", "order.cancelled"


def of_created(event: Event[OrderCreated], tx: Any) -> None: ...
def of_either(event: Event[OrderCreated | OrderCancelled], tx: Any) -> None: ...
def of_union(event: Event[Union[OrderCancelled, OrderCreated]], tx: Any) -> None: ...  # noqa: UP007
def of_optional(event: Event[Optional[OrderCancelled]], tx: Any) -> None: ...  # noqa: UP045
def of_text(event: "Event[OrderCancelled]", tx: Any) -> None: ...
def of_sequence(events: Sequence[Event[OrderCreated]], tx: Any) -> None: ...
def of_list(events: list[Event[OrderCreated | OrderCancelled]], tx: Any) -> None: ...
def of_optional_list(events: list[Event[OrderCreated]] | None, tx: Any) -> None: ...
def of_tuple(events: tuple[Event[OrderCreated], ...], tx: Any) -> None: ...
def with_more(event: Event[OrderCreated], tx: Any, more: int = 0) -> None: ...


TAKES = [
    (of_created, False, (CREATED,)),
    (of_either, False, (CREATED, CANCELLED)),
    (of_union, False, (CREATED, CANCELLED)),
    (of_optional, False, (CANCELLED,)),
    (of_text, False, (CANCELLED,)),
    (of_sequence, True, (CREATED,)),
    (of_list, True, (CREATED, CANCELLED)),
    (of_optional_list, True, (CREATED,)),
    (of_tuple, True, (CREATED,)),
    (with_more, False, (CREATED,)),
]


@pytest.mark.parametrize(("function", "of_batch", "types"), TAKES)
def test_the_annotation_says_what_it_takes(function: Any, *, of_batch: bool, types: tuple[str, ...]) -> None:
    made = downstream("points")(function)
    assert (made.batch or made.handler) is function
    assert (made.batch is not None, made.events) == (of_batch, types)


def test_a_lifespan_holds_what_a_handler_needs_and_refuses_settings() -> None:
    told: list[str] = []

    @contextmanager
    def opened(node: str) -> Iterator[None]:
        if not node:
            raise UsageError("SHOP_URL is not set")
        told.append(f"open {node}")
        yield
        told.append("closed")

    made = downstream("points", lifespan=opened)(of_created)
    with made.alive("points-1"):
        assert told == ["open points-1"]
    assert told == ["open points-1", "closed"]
    with pytest.raises(UsageError, match="SHOP_URL"), made.alive(""):
        pass
    with downstream("points")(of_created).alive("points-1"):
        pass


def test_later_says_why_where_it_was_told() -> None:
    assert (Later(30).why, str(Later(30))) == ("", "in 30 s")
    assert str(Later(1.5, "the shop is closed")) == "in 1.5 s: the shop is closed"


def test_lanes_are_for_a_handler_of_one_event() -> None:
    assert downstream("points", lanes=16)(of_created).lanes == 16
    assert downstream("points")(of_created).lanes == 0
    with pytest.raises(UsageError, match="lanes are for a handler of one event") as said:
        downstream("points", lanes=16)(of_sequence)
    assert "write handler(event, tx)" in said.value.hint
    with pytest.raises(UsageError, match="lanes are for a handler of one event"):
        Downstream("points", sql="DELETE FROM t USING fresh", events=(CREATED,), lanes=1)
    wrong: list[Any] = [-1, 501, 1.5, "4", True, None]
    for lanes in wrong:
        with pytest.raises(UsageError, match="lanes must be 1 to 500, or 0 for none"):
            downstream("points", lanes=lanes)(of_created)


def test_annotations_that_are_all_text() -> None:
    """As `from __future__ import annotations` makes them."""
    source = (
        "from __future__ import annotations\nfrom collections.abc import Sequence\n"
        "from brewctl.delivery.events import Event\nfrom brewctl.proto.orders_pb2 import OrderCreated\n"
        "def points(events: Sequence[Event[OrderCreated]], tx) -> None: ...\n"
    )
    names: dict[str, Any] = {}
    exec(compile(source, "points.py", "exec"), names)
    made = downstream("points")(names["points"])
    assert (made.batch, made.events) == (names["points"], (CREATED,))


def plain(event: Any, tx: Any) -> None: ...
def bare(event, tx): ...  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
def of_events(event: Event[Any], tx: Any) -> None: ...


def decode(payload: bytes) -> bytes:
    return payload


@pytest.mark.parametrize("function", [plain, bare, of_events])
def test_what_the_annotation_does_not_say_events_or_decoders_do(function: Any) -> None:
    assert downstream("points", events=("a.b", "a.b", "c"))(function).events == ("a.b", "c")
    assert downstream("points", events="a.b")(function).events == ("a.b",)
    made = downstream("points", decoders={"payment.received": decode})(function)
    assert made.events == ("payment.received",)
    assert made.decoder_of == {b"payment.received": decode}
    with pytest.raises(UsageError, match="which events it takes is not said") as caught:
        downstream("points")(function)
    assert "Event[OrderCreated]" in str(caught.value.hint)


def test_decoders_add_to_the_annotation_and_events_win() -> None:
    made = downstream("points", decoders={"payment.received": decode})(of_created)
    assert made.events == (CREATED, "payment.received")
    assert downstream("points", events=(CANCELLED,))(of_created).events == (CANCELLED,)


async def awaited(event: Event[OrderCreated], tx: Any) -> None: ...
async def async_generator(event: Event[OrderCreated], tx: Any) -> Any:
    yield event, tx


def generator(event: Event[OrderCreated], tx: Any) -> Any:
    yield event, tx


def no_arguments() -> None: ...
def one(event: Event[OrderCreated]) -> None: ...
def three(event: Event[OrderCreated], tx: Any, more: Any) -> None: ...
def by_name(event: Event[OrderCreated], *, tx: Any) -> None: ...


class Handler:
    def __call__(self, event: Event[OrderCreated], tx: Any) -> None: ...


REFUSED: dict[str, tuple[Any, str]] = {
    "async": (awaited, "downstream points: awaited is async"),
    "async generator": (async_generator, "is async"),
    "generator": (generator, "has a `yield`"),
    "no arguments": (no_arguments, "must take two arguments"),
    "one argument": (one, "must take two arguments"),
    "three arguments": (three, "must take two arguments"),
    "by name alone": (by_name, "must take two arguments"),
    "class": (Handler, "is no function"),
    "object": (Handler(), "is no function"),
    "downstream": (Downstream("other", handler=plain, events=(CREATED,)), "is no function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_handler_is_refused(name: str) -> None:
    function, why = REFUSED[name]
    with pytest.raises(UsageError, match=why) as caught:
        downstream("points")(function)
    assert "\n" not in str(caught.value)


def test_a_name_in_an_annotation_that_is_not_there_is_named() -> None:
    def points(event: "Event[Missing]", tx: Any) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(UsageError, match=r"points: its annotation names what is not there: .*Missing"):
        downstream("points")(points)


def test_the_decorator_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="without a name"):
        downstream(plain)  # type: ignore[arg-type]


WRONG: list[tuple[Callable[[], Downstream], str]] = [
    (lambda: Downstream("", handler=plain, events=(CREATED,)), "no name of a consumer group"),
    (lambda: Downstream("a b", handler=plain, events=(CREATED,)), "no name of a consumer group"),
    (lambda: Downstream("a" * 101, handler=plain, events=(CREATED,)), "no name of a consumer group"),
    (lambda: Downstream("a", events=(CREATED,)), "one of handler, batch and sql"),
    (lambda: Downstream("a", handler=plain, batch=plain, events=(CREATED,)), "one of handler, batch and sql"),
    (lambda: Downstream("a", handler=plain), "which events it takes"),
    (lambda: Downstream("a", handler=plain, events=CREATED), "events must be a list of event types"),  # type: ignore[arg-type]
    (lambda: Downstream("a", handler=plain, events=("",)), "events must be a list of event types"),
    (lambda: Downstream("a", sql="SELECT 1", events=(CREATED,)), "sql must be one INSERT"),
    (lambda: Downstream("a", handler=plain, events=(CREATED,), attempts=0), "attempts must be at least 1"),
    (lambda: Downstream("a", handler=plain, events=(CREATED,), decoders={CREATED: 1}), "decoders"),  # type: ignore[dict-item]
]


@pytest.mark.parametrize(("make", "why"), WRONG)
def test_parts_that_do_not_fit_are_refused(make: Callable[[], Downstream], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make()


def test_later_is_never_in_the_past() -> None:
    assert (Later(-1).seconds, Later(2).seconds) == (0.0, 2.0)
