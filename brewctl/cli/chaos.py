"""`brewctl chaos`: break the sandbox as production breaks systems, and judge the result."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brewctl.config import Settings
    from brewctl.lab.chaos.chaos import Plan
    from brewctl.lab.chaos.result import ScenarioResult
    from brewctl.lab.chaos.scenarios import Scenario
    from brewctl.lab.play.cast import Cast
    from brewctl.lab.record.history import Act

# Columns of the table: group, heading, width, field of a ScenarioResult. 80 characters in all.
_COLUMNS = (
    ("orders", "acked", 6, "acknowledged"),
    ("orders", "fail", 5, "failed"),
    ("orders", "unkn", 5, "unknown"),
    ("orders", "lost", 5, "lost"),
    ("topic", "twice", 6, "repeats"),
    ("effects", "miss", 5, "missing"),
    ("effects", "twice", 6, "doubled"),
    ("seconds", "still", 6, "standstill_s"),
    ("seconds", "after", 6, "catch_up_s"),
    ("seconds", "slow", 5, "slowest_s"),
)


def chaos(
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="A scenario to play; several times. See --list.", metavar="NAME", show_default="all"),
    ] = None,
    orders: Annotated[
        int, typer.Option(help="Orders in each scenario, or more: the load lasts as long as the faults.", min=1)
    ] = 400,
    rate: Annotated[float, typer.Option(help="Orders a second.", min=1, max=2000)] = 40.0,
    seed: Annotated[
        int | None, typer.Option(help="The same seed makes the same plan.", min=0, show_default="a random one")
    ] = None,
    cancel: Annotated[
        float,
        typer.Option(
            help="Share of the orders that are cancelled: half of them at once, the others later.", min=0, max=1
        ),
    ] = 0.0,
    session_timeout: Annotated[float, typer.Option(help="The consumers' session, in seconds.", min=3, max=300)] = 6.0,
    report: Annotated[
        Path | None, typer.Option(help="Write charts and figures to one FILE.html.", metavar="FILE.html")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Describe the scenarios and do nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox running afterwards.")] = False,
    secure: options.Secure = None,
    databases: options.Databases = None,
    as_json: options.AsJson = False,
    downstream: options.Downstreams = None,
) -> None:
    """Break nodes, servers and network under load, then verify.

    Runs on the sandbox only. Empties its tables, also those that a downstream's `done` query reads, and its topics.

    Exit 1 where a scenario fails.
    """
    import random

    from brewctl import config
    from brewctl.errors import BrewError, UsageError
    from brewctl.lab.chaos import scenarios
    from brewctl.lab.play.cast import cast

    settings = options.settings(downstreams=downstream)
    players = cast(settings)
    if list_:
        _list(scenarios.SCENARIOS, players, as_json=as_json)
        return
    chosen = _chosen(scenario or [], scenarios.SCENARIOS)
    options.check_file("--report", report, ".html")
    if elsewhere := _elsewhere(settings):
        raise UsageError("chaos breaks servers: it runs on the sandbox alone", hint=f"unset {elsewhere}")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    from brewctl.cli.sandbox import borrowed
    from brewctl.lab.chaos.chaos import Plan

    home = config.home()
    plan = Plan(orders=orders, rate=rate, seed=seed, session_s=session_timeout, cancel=cancel)
    played: list[tuple[ScenarioResult, Act]] = []
    try:
        with borrowed(home, keep=keep, secure=secure, databases=databases):
            output.note(f"seed {seed}, {rate:g} orders a second, sessions of {session_timeout:g} s")
            for each in chosen:
                played.append(_play(each, plan, home, downstream))
                if as_json:
                    result = played[-1][0]
                    output.emit_json(_document(result))
    finally:
        # Show the played scenarios even after a Ctrl-C or an error.
        if played and not as_json:
            _table([result for result, _ in played])
        if played and report:
            _write(report, [act for _, act in played], chosen, plan, downstream)
    if failed := [result.scenario for result, _ in played if not result.ok]:
        again = f"again: brewctl chaos --seed {seed}{_cancelling(plan)} --scenario {failed[0]}"
        raise BrewError(f"{', '.join(failed)} failed", hint=f"the nodes' logs are in {home}/logs/chaos; {again}")


def _play(
    scenario: "Scenario", plan: "Plan", home: Path, downstream: "list[str] | None"
) -> "tuple[ScenarioResult, Act]":
    from brewctl.lab.chaos import chaos as play
    from brewctl.lab.play.cast import cast
    from brewctl.lab.play.servers import Servers

    settings = options.settings(downstreams=downstream)  # again: the last scenario may have changed them
    output.note(f"{scenario.name}: {scenario.title_for(cast(settings))}")
    result, act = play.run(
        settings,
        scenario,
        plan,
        Servers(home),
        logs=home / "logs" / "chaos" / scenario.name,
        tell=lambda at_s, text: output.note(f"  {at_s:6.1f} s  {text}"),
    )
    output.note(f"  {_verdict(result)}")
    return result, act


def _write(
    report: Path, acts: "Sequence[Act]", chosen: "Sequence[Scenario]", plan: "Plan", downstream: "list[str] | None"
) -> None:
    from brewctl.lab import report as reports
    from brewctl.lab.chaos import scenarios

    names = "" if len(chosen) == len(scenarios.SCENARIOS) else "".join(f" --scenario {each.name}" for each in chosen)
    names += "".join(f" --downstream {name}" for name in downstream or ())
    same = f"--seed {plan.seed} --orders {plan.orders} --rate {plan.rate:g} --session-timeout {plan.session_s:g}"
    same += _cancelling(plan)
    facts = [("command", f"brewctl chaos{names} {same}")]
    reports.write(report, title="brewctl chaos", subtitle=f"{len(acts)} scenarios", acts=acts, facts=facts)
    output.note(f"wrote {report}")


def _document(result: "ScenarioResult") -> dict[str, object]:
    document = {"ok": result.ok, **asdict(result)}
    if result.cancels is None:
        del document["cancels"]
    return document


def _cancelling(plan: "Plan") -> str:
    """Return the option that repeats the plan's cancels."""
    return f" --cancel {plan.cancel:g}" if plan.cancel else ""


def _list(known: "Sequence[Scenario]", players: "Cast", *, as_json: bool) -> None:
    for scenario in known:
        if as_json:
            output.emit_json({"name": scenario.name, "title": scenario.title_for(players)})
        else:
            output.emit(f"{scenario.name:<20} {scenario.title_for(players)}")


def _elsewhere(settings: "Settings") -> str:
    """Return the variables that name other servers than the sandbox's."""
    if settings.configured & {"database_url", "brokers"}:
        return "BREW_DATABASE_URL and BREW_KAFKA_BROKERS"
    return " and ".join(each.named_by for each in settings.own_databases if each.variable in settings.configured)


def _chosen(names: "Sequence[str]", known: "Sequence[Scenario]") -> "list[Scenario]":
    from brewctl.errors import UsageError

    by_name = {scenario.name: scenario for scenario in known}
    for name in names:
        if name not in by_name:
            raise UsageError(f"no scenario {name[:80]!r}", hint="see `brewctl chaos --list`")
    return [by_name[name] for name in names] or list(known)


def _verdict(result: "ScenarioResult") -> str:
    if result.skipped:
        return f"skipped: {result.skipped}"
    catch_up = "never caught up" if result.catch_up_s is None else f"caught up {result.catch_up_s:.1f} s after the end"
    counts = {"acknowledged": result.acknowledged, "refused": result.refused}
    counts |= {"failed": result.failed, "unknown": result.unknown}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    times = f"stood still {result.standstill_s:.1f} s, {catch_up}, slowest {result.slowest_s:.1f} s"
    lines = [f"{'ok' if result.ok else 'FAILED'}: {told}; {times}", *result.findings]
    if cancels := result.cancels:
        told = f"cancels: {cancels.acknowledged} acknowledged, {cancels.refused} refused, {cancels.unknown} unknown"
        lines.insert(1, told)
    return "\n    ".join(lines)


def _table(results: "Sequence[ScenarioResult]") -> None:
    widths: dict[str, int] = {}
    for about, _, width, _ in _COLUMNS:
        widths[about] = widths.get(about, 0) + width
    output.emit(f"{'':<19}" + "".join(f"{about:>{width}}" for about, width in widths.items()))
    output.emit(f"{'scenario':<19}" + "".join(f"{name:>{width}}" for _, name, width, _ in _COLUMNS))
    for result in results:
        row = "".join(f"{_cell(result, field):>{width}}" for _, _, width, field in _COLUMNS)
        verdict = "skip" if result.skipped else "ok" if result.ok else "FAILED"
        output.emit(f"{result.scenario:<19}{row} {verdict}")


def _cell(result: "ScenarioResult", field: str) -> str:
    value = getattr(result, field)
    if result.skipped or value is None:
        return "-"
    return f"{value:.1f}" if field.endswith("_s") else str(value)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl chaos --scenario kill-consumer --report chaos.html")(chaos)
