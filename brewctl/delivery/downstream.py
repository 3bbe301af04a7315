"""Defines `Downstream`, a consumer group with an effect that each of its events has once, and `@downstream`.

The effect is a handler of one event, a handler of a batch, or an SQL statement over `fresh`. In each form the effect
and the dedup row are one transaction. `inbox` runs it.
"""

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, LiteralString

from brewctl.delivery import events, sql_text
from brewctl.delivery.events import Decoder, Event
from brewctl.errors import UsageError

Handler = Callable[..., None]
Lifespan = Callable[[str], AbstractContextManager[object]]

MOST_LANES = 500
# Kafka allows 249 characters; the rest is for a prefix, and for names made of it in PostgreSQL and the shell.
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Reject(Exception):  # noqa: N818 - a handler's word, not an error of ours
    """Raised by a handler to refuse an event for ever: it is parked at once, with the message as the reason."""


class Later(Exception):  # noqa: N818
    """Raised by a handler to be called again in `seconds`: the event did not fail, and the try does not count.

    The whole batch waits; with lanes, the event and its key. `why` is shown by the node.
    """

    def __init__(self, seconds: float, why: str = "") -> None:
        super().__init__(f"in {seconds:g} s: {why}" if why else f"in {seconds:g} s")
        self.seconds = max(0.0, float(seconds))
        self.why = why


@dataclass(frozen=True)
class Downstream:
    """A consumer group, its event types, and its effect: exactly one of `handler`, `batch` and `sql`.

    Each event has what the effect does through `tx` exactly once, and all else at least once. Raises UsageError where
    the fields do not fit together.
    """

    group: str  # the consumer group, and the name in processed_events
    handler: Handler | None = None  # (event, tx)
    batch: Handler | None = None  # (events, tx)
    sql: LiteralString | None = None  # a statement that reads `fresh`
    events: tuple[str, ...] = ()  # the event types that it takes
    decoders: Mapping[str, Decoder] = field(default_factory=dict)  # by event type; they override the story's own
    schema: str = ""  # SQL text that makes its tables, or the name of a .sql file
    done: str = ""  # an SQL query that returns the order id of each effect: for `verify` and `trace`
    attempts: int = 5  # tries of an event before it is parked
    lanes: int = 0  # how many keys a node handles at once, outside the batch's transaction; 0: within it
    service: str = ""  # its name in the line that a node prints at its end; default: the group
    verb: str = "done"  # the name of its count of effects in that line
    undo: str = ""  # the name in `trace` of its effect of an order's cancel
    counter: str = ""  # the name of its count of effects in `counts`; default: the group
    node: str = ""  # the prefix of its nodes' names, before their numbers
    folder: str = ""  # the folder of the .sql file
    tables: tuple[str, ...] = ()  # the tables of the migrations that hold its effects
    lifespan: Lifespan | None = None  # given a node's name, a context that its handler needs while the node runs

    def __post_init__(self) -> None:
        if not _GROUP.fullmatch(self.group):
            raise UsageError(
                f"downstream {self.group[:80]!r}: no name of a consumer group",
                hint="use 1 to 100 letters, digits, '.', '_', '-'",
            )
        if sum(form is not None for form in (self.handler, self.batch, self.sql)) != 1:
            raise UsageError(f"downstream {self.group}: give it one of handler, batch and sql")
        if isinstance(self.events, str) or not all(isinstance(name, str) and name for name in self.events):
            raise UsageError(f"downstream {self.group}: events must be a list of event types, such as 'order.created'")
        for name, decoder in self.decoders.items():
            if not callable(decoder):
                raise UsageError(f"downstream {self.group}: decoders[{name!r}] is no function of the payload's bytes")
        if not self.events:
            raise UsageError(
                f"downstream {self.group}: which events it takes is not said",
                hint='annotate the event as Event[OrderCreated], or give events=("order.created",)',
            )
        if self.sql is not None:
            try:
                sql_text.effect(self.sql)
            except ValueError as error:
                raise UsageError(f"downstream {self.group}: {error}") from None
        if self.attempts < 1:
            raise UsageError(f"downstream {self.group}: attempts must be at least 1")
        self._check_lanes()

    def _check_lanes(self) -> None:
        if isinstance(self.lanes, bool) or not isinstance(self.lanes, int) or not 0 <= self.lanes <= MOST_LANES:
            raise UsageError(f"downstream {self.group}: lanes must be 1 to {MOST_LANES}, or 0 for none")
        if self.lanes and self.handler is None:
            raise UsageError(
                f"downstream {self.group}: lanes are for a handler of one event",
                hint="a batch, or an SQL statement, is one transaction: leave out lanes, or write handler(event, tx)",
            )

    @cached_property
    def decoder_of(self) -> Mapping[bytes, Decoder]:
        """The decoder of each of its event types, by the bytes of the header `event-type`."""
        known = {**events.DECODERS, **self.decoders}
        return {name.encode(): known.get(name, _undecoded) for name in self.events}

    def alive(self, node: str) -> AbstractContextManager[object]:
        """Enter its `lifespan`, if it has one, for a node. Raises what that raises."""
        return self.lifespan(node) if self.lifespan else nullcontext()

    @property
    def name(self) -> str:
        """Its name in the line that a node prints at its end."""
        return self.service or self.group

    @property
    def counted_as(self) -> str:
        """The name of its count of effects in `counts`."""
        return self.counter or self.group

    @property
    def follows_orders(self) -> bool:
        """Whether every order has an effect of it."""
        return events.ORDER_CREATED in self.events

    @property
    def did(self) -> str:
        """The name of its effects beside those of other downstreams: its verb, or "done by" and its group."""
        return f"done by {self.group}" if self.verb == "done" else self.verb


def _undecoded(payload: bytes) -> bytes:
    return payload


def downstream(
    group: str,
    *,
    events: Sequence[str] = (),
    decoders: Mapping[str, Decoder] | None = None,
    schema: str = "",
    done: str = "",
    attempts: int = 5,
    lanes: int = 0,
    lifespan: Lifespan | None = None,
) -> Callable[[Handler], Downstream]:
    """Make a function a downstream: `handler(event, tx)`, or `handler(events, tx)` for a Sequence[Event].

    `events`: the event types it takes; default: those of its annotation.
    `decoders`: by event type, a function from the payload's bytes to `event.data`.
    `schema`: SQL, or the name of a .sql file beside the module, that `brewctl db init MODULE:NAME` runs.
    `done`: an SQL query that returns the order id of each effect, for `verify` and `trace`.
    `attempts`: how often an event is tried before it is parked.
    `lanes`: how many keys each node handles at once, for handlers that call other services and may take long: each
    event by itself, with no transaction open until `tx` is used.
    `lifespan`: called with the node's name before the first event; it returns a context manager that is left after the
    last event, for a client, or a check of settings.

    What is written through `tx` happens once for each event; all else that a handler does, at least once. Raises
    UsageError where the arguments do not fit the function.
    """
    if not isinstance(group, str):
        raise UsageError("@downstream stands without a name", hint='write @downstream("name")')
    if isinstance(events, str):
        events = (events,)

    def make(function: Handler) -> Downstream:
        _check_call(function, group)
        of_batch, annotated = _annotation(function)
        names = tuple(events) or (*_types_of(annotated), *(decoders or {}))
        form: dict[str, Any] = {"batch" if of_batch else "handler": function}
        return Downstream(
            group,
            **form,
            events=tuple(dict.fromkeys(names)),
            decoders=decoders or {},
            schema=schema,
            done=done,
            attempts=attempts,
            lanes=lanes,
            lifespan=lifespan,
            folder=_folder(function),
        )

    return make


def _check_call(function: Handler, group: str) -> None:
    """Raise UsageError unless it takes two arguments, and has run when its call returns."""
    if not inspect.isfunction(function):
        said = f"downstream {group}: {getattr(function, '__name__', function)!s:.80} is no function"
        raise UsageError(said, hint='write @downstream("name") above `def name(event: Event[OrderCreated], tx)`')
    place = f"downstream {group}: {function.__name__}"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(f"{place} is async, and a handler is called, not awaited", hint="write it with `def`")
    if inspect.isgeneratorfunction(function):
        raise UsageError(f"{place} has a `yield`: called, it would do nothing", hint="write it without `yield`")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise UsageError(f"{place} must take two arguments: the event, or the events, and tx") from None


def _folder(function: Handler) -> str:
    return function.__code__.co_filename.rpartition("/")[0] if hasattr(function, "__code__") else ""


def _annotation(function: Handler) -> tuple[bool, Any]:
    """Return whether a handler takes a batch, and the type of the data in its annotation."""
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise UsageError(f"downstream {function.__name__}: its annotation names what is not there: {error}") from None
    names = list(function.__code__.co_varnames[: function.__code__.co_argcount])
    hint = hints.get(names[0]) if names else None
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:  # such as `Event[…] | None`
        hint = next((one for one in typing.get_args(hint) if one is not type(None)), None)
    of_batch = typing.get_origin(hint) in {collections.abc.Sequence, list, tuple}
    if of_batch:
        hint = next(iter(typing.get_args(hint)), None)
    return of_batch, next(iter(typing.get_args(hint)), None) if typing.get_origin(hint) is Event else None


def _types_of(annotated: Any) -> list[str]:
    wanted = (
        typing.get_args(annotated) if typing.get_origin(annotated) in {typing.Union, types.UnionType} else (annotated,)
    )
    return [name for name, message in events.MESSAGES.items() if message in wanted]
