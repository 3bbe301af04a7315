"""The HTML page: verdict, facts, a table of all acts, and a section for each act."""

from collections.abc import Iterator, Sequence

from brewctl.lab.record.history import Act, Claim
from brewctl.lab.report.chart import NARROW, WIDE, picture
from brewctl.lab.report.markup import Markup, leaf, tag

_SIGNS = {"ok": "✓", "failed": "✗", "skipped": "—"}
# The page must load and run nothing, whatever the texts of a run contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(title: str, subtitle: str, acts: Sequence[Act], facts: Sequence[tuple[str, str]], *, style: str) -> Markup:
    """Return the page."""
    head = tag(
        "head",
        leaf("meta", charset="utf-8"),
        leaf("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        leaf("meta", name="viewport", content="width=device-width, initial-scale=1"),
        leaf("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: {_verdict(acts)}"),
        tag("style", Markup(style)),
    )
    sections = [_section(act, index) for index, act in enumerate(acts, 1)]
    summary = [_summary(acts)] if len(acts) > 1 else []
    body = tag("body", _header(title, subtitle, acts, facts), tag("main", *summary, *sections))
    return Markup(f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n")


def _header(title: str, subtitle: str, acts: Sequence[Act], facts: Sequence[tuple[str, str]]) -> Markup:
    ran = [act for act in acts if not act.skipped]
    outcome = "skipped" if not ran else "ok" if all(act.ok for act in ran) else "failed"
    return tag(
        "header",
        tag("h1", title),
        tag("p", subtitle, class_="subtitle"),
        tag("p", _sign(outcome), " ", tag("strong", _verdict(acts)), class_=f"verdict {outcome}"),
        _pairs(facts, "facts"),
    )


def _verdict(acts: Sequence[Act]) -> str:
    """Return the verdict in one line."""
    ran = [act for act in acts if not act.skipped]
    failed = [act for act in ran if not act.ok]
    skipped = f", {len(acts) - len(ran)} skipped" if len(ran) < len(acts) else ""
    if not ran:
        return f"nothing ran{skipped}"
    if failed:
        return f"{len(failed)} of {len(ran)} failed: {', '.join(act.name for act in failed)}{skipped}"
    return f"{'all ' if len(ran) > 1 else ''}{len(ran)} of {len(ran)} ok{skipped}"


def _summary(acts: Sequence[Act]) -> Markup:
    """Return a table with a row for each act, and a column for each figure."""
    names = list(dict.fromkeys(name for act in acts for name, _ in act.figures))
    head = tag("tr", *(tag("th", name, scope="col") for name in ("scenario", "verdict", *names)))
    rows = [_row(act, index, names) for index, act in enumerate(acts, 1)]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="summary")


def _row(act: Act, index: int, names: Sequence[str]) -> Markup:
    figures = dict(act.figures)
    link = tag("a", act.name, href=f"#act-{index}")
    return tag(
        "tr",
        tag("th", link, scope="row"),
        tag("td", _badge(act)),
        *(_value("td", figures.get(name, "—")) for name in names),
    )


def _section(act: Act, index: int) -> Markup:
    heading = tag("h2", act.title, " ", _badge(act))
    return tag("section", heading, *_content(act, f"a{index}"), id=f"act-{index}")


def _content(act: Act, key: str) -> Iterator[Markup]:
    if act.skipped:
        yield tag("p", f"Did not run: {act.skipped}", class_="reason")
        return
    if act.findings:
        yield tag("ul", *(tag("li", finding) for finding in act.findings), class_="findings")
    if act.claims:
        yield tag("ul", *map(_claim, act.claims), class_="claims")
    if act.figures:
        yield _pairs(act.figures, "figures")
    if act.samples or act.ownerships:
        # A picture can't reflow. So there is a wide and a narrow one, and the style sheet shows the one that fits.
        wide, narrow = (picture(act, width=width, key=f"{key}-{width:.0f}") for width in (WIDE, NARROW))
        yield tag("figure", tag("div", wide, class_="wide"), tag("div", narrow, class_="narrow"))
    if act.events:
        yield _log(act)


def _claim(claim: Claim) -> Markup:
    outcome = "ok" if claim.holds else "failed"
    found = "" if claim.holds else f": {claim.found}"
    return tag("li", tag("span", _SIGNS[outcome], class_=outcome), f" {claim.text}{found}")


def _log(act: Act) -> Markup:
    rows = (
        tag("tr", tag("td", f"{event.at_s:.1f} s", class_="time"), tag("td", event.text))
        for event in sorted(act.events, key=lambda event: event.at_s)
    )
    lines = f"{len(act.events)} line{'s' if len(act.events) > 1 else ''}"
    return tag("details", tag("summary", f"event log, {lines}"), tag("table", tag("tbody", *rows), class_="log"))


def _badge(act: Act) -> Markup:
    return tag("span", _sign(act.verdict), " ", act.verdict, class_=f"badge {act.verdict}")


def _sign(verdict: str) -> Markup:
    return tag("span", _SIGNS[verdict], aria_hidden="true")


def _pairs(pairs: Sequence[tuple[str, str]], style: str) -> Markup:
    return tag("dl", *(tag("div", tag("dt", name), _value("dd", value)) for name, value in pairs), class_=style)


def _value(element: str, value: str) -> Markup:
    return tag(element, value, class_="none" if value in {"0", "—"} else None)
