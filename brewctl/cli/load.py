"""`brewctl load`: send orders, and measure the rate and the latencies."""

import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewctl.cli import options, output

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from brewctl.lab.load.load import Load
    from brewctl.lab.load.measure import LoadResult, Measurement

_PERCENTILES = (50, 90, 99, 99.9)
_DURATION_S = 10.0
# All calls of a connection go to one process: several connections also reach all of `serve order --workers`.
_CALLERS_A_CONNECTION = 4
_WIDTH = 80
_LOOKS_PER_S = 4


def load(
    concurrency: Annotated[
        int, typer.Option(help="Callers; each waits for an answer before its next order.", min=1, max=1024)
    ] = 64,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: orders a second, without waiting for answers.",
            min=0.01,
            max=100_000,
            show_default="closed loop",
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds to measure.", min=0.1, max=86_400, show_default=f"{_DURATION_S:g}"),
    ] = None,
    orders: Annotated[
        int | None, typer.Option(help="Orders to measure, instead of a duration.", min=1, show_default=False)
    ] = None,
    warmup: Annotated[float, typer.Option(help="Seconds of load before the measurement.", min=0, max=3600)] = 1.0,
    cancel: Annotated[
        float,
        typer.Option(
            help="Share of the orders that are cancelled: half of them at once, the others later.", min=0, max=1
        ),
    ] = 0.0,
    connections: Annotated[
        int | None,
        typer.Option(
            help="Connections to each address; the callers share them.",
            min=1,
            max=1024,
            show_default=f"one for {_CALLERS_A_CONNECTION} callers",
        ),
    ] = None,
    addr: options.Addr = None,
    as_json: options.AsJson = False,
) -> None:
    """Load order-service: the rate, the failures and the latencies.

    With --rate the latency of an order counts from the time when it was due, so that stalls of the server show.

    Ctrl-C shows what was measured so far. Exit 1 where an order or a cancel failed for good, 3 where no order-service
    answers.
    """
    from brewctl.errors import BrewError, ExitCode, UsageError

    if duration and orders:
        raise UsageError("--duration and --orders each end the load", hint="give one of them")
    settings = options.settings(order_addrs=",".join(addr or []))
    from brewctl.lab.load.load import Load
    from brewctl.lab.load.measure import Measurement
    from brewctl.signals import stop_on_signals

    used: dict[str, Any] = {
        "concurrency": concurrency,
        "connections": connections or math.ceil(concurrency / _CALLERS_A_CONNECTION),
        "rate": rate,
        "warmup_s": warmup,
        "duration_s": duration or (None if orders else _DURATION_S),
        "orders": orders,
    }
    if cancel:
        used["cancel"] = cancel
    measurement = Measurement()
    sending = Load(
        settings.order_addrs,
        measurement.record,
        record_cancel=measurement.record_cancel,
        security=settings.order_security,
        **used,
    )
    with stop_on_signals() as stop, _live(sending, measurement):
        sending.run(stop)
    result = measurement.result(unsent=sending.unsent)
    if as_json:
        cancels = {"cancels": _cancels(result)} if cancel else {}
        output.emit_json({**_figures(result), **cancels, "settings": {"addresses": settings.order_addrs, **used}})
    else:
        output.emit("\n".join([*_shown(result), *(_cancels_shown(result) if cancel else ())]))
    if stop.is_set():
        raise typer.Exit(ExitCode.INTERRUPTED)
    if result.failed:
        raise BrewError(f"{result.failed:,} of {result.count:,} orders failed")
    if result.not_cancelled:
        raise BrewError(f"{result.not_cancelled:,} of {result.cancels.count:,} cancels failed")


def _figures(result: "LoadResult") -> dict[str, Any]:
    return {
        "rate_per_s": round(result.rate_per_s, 1),
        "seconds": round(result.seconds, 3),
        "count": result.count,
        "failed": result.failed,
        "failures": result.failures,
        "retries": result.retries,
        "unsent": result.unsent,
        "latency_ms": {name: round(value, 3) for name, value in _latencies_ms(result).items()},
    }


def _latencies_ms(result: "LoadResult") -> dict[str, float]:
    percentiles = {f"p{percent:g}": result.percentile_ms(percent) for percent in _PERCENTILES}
    return {**percentiles, "max": result.max_ms, "mean": result.mean_ms}


def _cancels(result: "LoadResult") -> dict[str, Any]:
    return {
        "count": result.cancels.count,
        "acknowledged": result.cancels.count - result.not_cancelled,
        "failed": result.not_cancelled,
        "failures": result.cancel_failures,
        "latency_ms": {name: round(value, 3) for name, value in _cancel_latencies_ms(result).items()},
    }


def _cancel_latencies_ms(result: "LoadResult") -> dict[str, float]:
    percentiles = {f"p{percent:g}": result.cancels.percentile_s(percent) * 1000 for percent in _PERCENTILES}
    return {**percentiles, "max": result.cancels.max_s * 1000, "mean": result.cancels.mean_s * 1000}


def _cancels_shown(result: "LoadResult") -> list[str]:
    count = result.cancels.count
    lines = [
        f"cancels     {count - result.not_cancelled:,} of {count:,} acknowledged",
        f"{'ms':<10}" + "".join(f"{value:>11,.2f}" for value in _cancel_latencies_ms(result).values()),
    ]
    for reason, times in result.cancel_failures.items():
        lines.append(output.fitted(f"{times:>9,}   {reason}", _WIDTH))
    return lines


def _shown(result: "LoadResult") -> list[str]:
    latencies = _latencies_ms(result)
    lines = [
        f"orders      {result.count:,} in {result.seconds:,.1f} s, {result.rate_per_s:,.1f} created a second",
        "latency ms" + "".join(f"{name:>11}" for name in latencies),
        f"{'':<10}" + "".join(f"{value:>11,.2f}" for value in latencies.values()),
        f"retries     {result.retries:,} orders needed more than one try",
        f"failures    {result.failed:,}",
    ]
    for reason, count in result.failures.items():
        lines.append(output.fitted(f"{count:>9,}   {reason}", _WIDTH))
    if result.unsent:
        lines.append(f"unsent      {result.unsent:,} were due at the end and still waited for a caller")
    return lines


def _live(load: "Load", measurement: "Measurement") -> "AbstractContextManager[object]":
    """Show the progress in a terminal; nothing is written to a pipe."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    began = before_s = time.monotonic()
    before = 0

    def line() -> "Text":
        nonlocal before, before_s
        now_s, sent = time.monotonic(), load.sent
        rate = (sent - before) / (now_s - before_s)
        before, before_s = sent, now_s
        return Text(f"{now_s - began:4.0f} s  {sent:,} sent  {rate:,.0f} a second  {measurement.failed:,} failed")

    return Live(get_renderable=line, console=Console(stderr=True), refresh_per_second=_LOOKS_PER_S, transient=True)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl load --rate 200 --duration 30 --addr 127.0.0.1:50081 --addr 127.0.0.1:50082")(
        load
    )
