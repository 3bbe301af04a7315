"""`brewctl db retention`: drop old partitions, create new ones ahead, delete old idempotency keys."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl import config
from brewctl.cli import options, output
from brewctl.errors import BrewError, UsageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from brewctl.delivery.retention.expiry import Forgotten
    from brewctl.delivery.retention.plan import PartitionVerdict
    from brewctl.delivery.retention.retention import RetentionOutcome

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"([0-9]{1,9})([smhd])|0")
_NODE = "retention"
_ROWS = (1000, 1_000_000_000)  # the bounds of the table's own check
_KIB = 1024


def _span(value: str) -> str:
    if not _SPAN.fullmatch(value):
        raise UsageError(f"{value[:40]!r} is no time", hint="use a number with s, m, h or d, such as 7d; 0: never")
    return value


def _delta(value: str) -> timedelta | None:
    """Return the time span; None for 0, which means never."""
    found = _SPAN.fullmatch(value)
    assert found is not None  # the option's callback has checked it
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]]) if found[1] and int(found[1]) else None


def retention(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what may be dropped; change nothing.")] = False,
    every: Annotated[
        float, typer.Option(help="Repeat, with this pause between runs; 0: run once.", metavar="SECONDS", min=0)
    ] = 0,
    keys_for: Annotated[
        str,
        typer.Option(
            "--keys-for", help="Keep idempotency keys this long; 0: for ever.", metavar="TIME", callback=_span
        ),
    ] = "7d",
    settled_for: Annotated[
        str,
        typer.Option(
            "--settled-for",
            help="Keep outcomes of parked events and dead letters this long; 0: for ever.",
            metavar="TIME",
            callback=_span,
        ),
    ] = "30d",
    partition_rows: Annotated[
        int | None,
        typer.Option(
            "--partition-rows", help="Ids in each partition that is created from now on.", min=_ROWS[0], max=_ROWS[1]
        ),
    ] = None,
    topic_gone: Annotated[
        list[str] | None,
        typer.Option("--topic-gone", help="This topic, of your own events, no longer exists.", metavar="TOPIC"),
    ] = None,
    lost_to: Annotated[
        list[str] | None,
        typer.Option("--lost-to", help="Drop rows even if this group has not processed them.", metavar="GROUP"),
    ] = None,
    as_json: options.AsJson = False,
    log_format: options.Format = config.LogFormat.LOGFMT,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Drop old partitions of the outbox and of the dedup tables.

    A partition is dropped once all its rows are published, every group has committed beyond them, and the topic has
    removed their records.

    It also creates partitions ahead, and deletes idempotency keys. A call with a deleted key creates a new order.

    Runs exclude each other. They need the rights of the tables' owner.

    Exit 1 where a problem kept it from dropping anything, or where a downstream's database is away.
    """
    if dry_run and (every or partition_rows):
        raise UsageError("--dry-run changes nothing", hint="leave --every and --partition-rows out")
    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic, downstreams=downstream)
    asked = {"gone": topic_gone or [], "lost_to": lost_to or []}
    if dry_run:
        _plan(settings, asked, as_json=as_json)
        return
    spans = {"keys_for": _delta(keys_for), "settled_for": _delta(settled_for)}
    if every:
        _loop(settings, every, asked, spans, partition_rows, log_format)
        return
    outcome, forgotten = _once(
        settings, asked, spans, partition_rows, tell=lambda text: output.note(output.plain(text))
    )
    _show(outcome, forgotten, as_json=as_json)
    if problem := _problem(outcome):
        raise problem


def _once(
    settings: config.Settings,
    asked: dict[str, list[str]],
    spans: dict[str, timedelta | None],
    partition_rows: int | None,
    *,
    tell: "Callable[[str], None]",
    stop: "threading.Event | None" = None,
) -> "tuple[RetentionOutcome, Forgotten]":
    from brewctl.delivery import database
    from brewctl.delivery.retention import expiry
    from brewctl.delivery.retention import retention as work
    from brewctl.delivery.retention.turn import take_turn
    from brewctl.delivery.schema import registration

    with database.connect(settings, name=_NODE) as connection:
        registration.require_story(settings, connection)
        work.state(connection)
        with take_turn(connection, stop) as turn:
            if partition_rows:
                work.size(settings, connection, partition_rows)
            outcome = work.Run(settings, connection, turn, tell).drop(**asked)
            forgotten = expiry.forget(settings, connection, **spans, between=turn.renew)
    return outcome, forgotten


def _loop(
    settings: config.Settings,
    every: float,
    asked: dict[str, list[str]],
    spans: dict[str, timedelta | None],
    partition_rows: int | None,
    log_format: config.LogFormat,
) -> None:
    """Run every `every` seconds. If a run fails, or another process runs, the next run tries again."""
    from brewctl import log, signals
    from brewctl.delivery.retention.turn import BusyError

    log.configure(node=_NODE, as_json=log_format is config.LogFormat.JSON, verbose=output.verbose)
    logger = log.get(__name__)
    with signals.stop_on_signals() as stop:
        log.say(_NODE, f"ready: one run every {every:g} s")
        while not stop.is_set():
            try:
                outcome, forgotten = _once(
                    settings, asked, spans, partition_rows, tell=lambda text: log.say(_NODE, text), stop=stop
                )
                partition_rows = None
                said = {"dropped": ",".join(outcome.dropped), "forgot": str(forgotten), "watermark": outcome.watermark}
                if problem := _problem(outcome):
                    logger.error("retention_refused", **said, reason=problem.message, hint=problem.hint)
                else:
                    logger.info("retention_ran", **said, kept=_kept(outcome))
            except UsageError:
                raise
            except BusyError as busy:
                logger.info("retention_waits", reason=busy.message)
            except BrewError as error:
                if stop.is_set():
                    break
                logger.error("retention_failed", reason=error.message, hint=error.hint)  # noqa: TRY400 - in the user's words
            stop.wait(every)


def _kept(outcome: "RetentionOutcome") -> str:
    kept = outcome.kept
    return f"{kept.partition.name}: {kept.reasons[0].text}" if kept else ""


def _problem(outcome: "RetentionOutcome") -> BrewError | None:
    if outcome.refused and outcome.kept:
        reason = outcome.kept.reasons[0]
        return BrewError(f"nothing was dropped: {outcome.kept.partition.name}: {reason.text}", hint=reason.todo)
    if outcome.away:
        return BrewError(f"left to a later run: {'; '.join(outcome.away)}", hint="run it again when it is there")
    return None


def _show(outcome: "RetentionOutcome", forgotten: "Forgotten", *, as_json: bool) -> None:
    if as_json:
        output.emit_json(
            {
                "dropped": outcome.dropped,
                "watermark": outcome.watermark,
                "kept": _kept(outcome),
                "refused": outcome.refused,
                "away": outcome.away,
                "forgotten": vars(forgotten),
            }
        )
        return
    output.emit(f"dropped    {', '.join(outcome.dropped) or 'nothing'}")
    output.emit(f"watermark  {outcome.watermark}: rows with smaller ids were dropped")
    output.emit(f"forgot     {forgotten}")
    if outcome.kept and not outcome.refused:
        output.emit(output.plain(f"stays      {_kept(outcome)}"))
        output.note(output.plain(f"what to do: {outcome.kept.reasons[0].todo}"))


def _plan(settings: config.Settings, asked: dict[str, list[str]], *, as_json: bool) -> None:
    from brewctl.delivery import database
    from brewctl.delivery.retention import retention as work
    from brewctl.delivery.schema import registration

    with database.connect(settings, name=_NODE) as connection:
        registration.require_story(settings, connection, reading=True)
        watermark = work.watermark(connection)
        verdicts = work.plan(settings, connection, **asked)
        strays = work.strays(settings, connection)
    if as_json:
        found = [{"of": home.groups if home.apart else [], **_as_json(each)} for home, each in strays]
        output.emit_json({"watermark": watermark, "partitions": [_as_json(each) for each in verdicts], "strays": found})
    else:
        _draw(verdicts, watermark)
        for home, each in strays:
            _draw_one(each, f"{home.whose}: " if home.apart else "")
    wrong = next((each for each in verdicts if any(reason.refused for reason in each.reasons)), None)
    if wrong:
        reason = wrong.reasons[0]
        raise BrewError(f"nothing would be dropped: {wrong.partition.name}: {reason.text}", hint=reason.todo)


def _as_json(verdict: "PartitionVerdict") -> dict[str, object]:
    partition = verdict.partition
    return {
        "name": partition.name,
        "from": partition.low,
        "below": partition.high,
        "rows": verdict.rows,
        "bytes": partition.bytes,
        "oldest": verdict.oldest.isoformat() if verdict.oldest else None,
        "may_go": verdict.may_go,
        "looked": verdict.looked,
        "reasons": [
            {"text": reason.text, "todo": reason.todo, "refused": reason.refused} for reason in verdict.reasons
        ],
    }


def _draw(verdicts: "Sequence[PartitionVerdict]", watermark: int) -> None:
    output.emit(f"watermark {watermark}: rows with smaller ids were dropped")
    looked = [verdict for verdict in verdicts if verdict.looked]
    for verdict in looked:
        _draw_one(verdict)
    if behind := verdicts[len(looked) :]:
        names = " … ".join(dict.fromkeys((behind[0].partition.name, behind[-1].partition.name)))
        count, size = sum(each.rows for each in behind), _size(sum(each.partition.bytes for each in behind))
        output.emit(f"{names}: about {count} rows, {size}: {'stays' if len(behind) == 1 else 'stay'} as well")


def _draw_one(verdict: "PartitionVerdict", whose: str = "") -> None:
    partition = verdict.partition
    first = "the first" if partition.low is None else str(partition.low)
    age = f", {_age(verdict.oldest)} old" if verdict.oldest else ""
    size = f"{'' if verdict.looked else 'about '}{verdict.rows} rows{age}, {_size(partition.bytes)}"
    what = "may go" if verdict.may_go else "stays"
    output.emit(f"{whose}{partition.name}: ids {first} to {partition.high - 1}, {size}: {what}")
    for reason in verdict.reasons:
        output.emit(output.plain(f"  {reason.text}"))
        output.emit(output.plain(f"    what to do: {reason.todo}"))


def _age(oldest: datetime) -> str:
    seconds = (datetime.now(UTC) - oldest).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds / length)} {unit}"
    return f"{max(0, seconds):.0f} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB or unit == "GiB":
            break
        size /= _KIB
    return f"{size:.0f} {unit}"
