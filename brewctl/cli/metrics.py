"""`brewctl metrics`: metrics of the whole flow, for Prometheus."""

import logging
from http import HTTPStatus
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from brewctl import config
from brewctl.cli import options, output
from brewctl.errors import BrewError, UsageError

if TYPE_CHECKING:
    from brewctl.exporter.collector import Collector
    from brewctl.probes.endpoint import Address

_DEFAULT = "127.0.0.1:9465"
# Enough for the first look, which connects to both servers and reads all dead letters.
_ONCE_S = 30.0
_NODE = "metrics"
_SLICE_S = 0.2


def metrics(
    http: Annotated[
        str, typer.Option(help="Where to serve /metrics, /livez and /readyz.", metavar="HOST:PORT")
    ] = _DEFAULT,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once, and serve nothing.")] = False,
    log_format: options.Format = config.LogFormat.LOGFMT,
    database_url: options.DatabaseUrl = None,
    brokers: options.Brokers = None,
    topic: options.Topic = None,
    downstream: options.Downstreams = None,
) -> None:
    """Serve metrics of the whole flow for Prometheus.

    They count waiting rows, lag, dead letters and parked events. One process is enough for all replicas.

    It only reads. While a server is away, its brew_up is 0, and its metrics are left out.

    With --once: exit 3 where a server is away, 1 where a metric could not be read.
    """
    _require_library()
    from brewctl.exporter.collector import Collector
    from brewctl.probes import endpoint

    settings = options.settings(database_url=database_url, brokers=brokers, topic=topic, downstreams=downstream)
    if once:
        _print_once(Collector(settings, within_s=_ONCE_S))
    else:
        _serve(Collector(settings), endpoint.address(http), log_format)


def _require_library() -> None:
    from brewctl.metrics import EXTRA

    if not find_spec("prometheus_client"):
        raise UsageError("prometheus-client is not installed", hint=EXTRA)


def _print_once(collector: "Collector") -> None:
    from brewctl import log

    log.configure()
    logging.getLogger("brewctl").setLevel(logging.CRITICAL)  # problems are raised below
    with collector.looking():
        page = collector.page()
        problems = collector.problems()
    output.emit(page.decode().rstrip("\n"))
    if problems.away:
        raise problems.away
    if problems.failed:
        raise BrewError(f"metrics are left out: {'; '.join(dict.fromkeys(problems.failed))}")


def _serve(collector: "Collector", where: "Address", log_format: config.LogFormat) -> None:
    from brewctl import log, signals
    from brewctl.metrics.prometheus import CONTENT_TYPE
    from brewctl.probes import endpoint
    from brewctl.probes.health import Health
    from brewctl.probes.pages import Answer, Page
    from brewctl.roles import observing

    def numbers() -> Answer:
        return Answer(HTTPStatus.OK, CONTENT_TYPE, collector.page())

    log.configure(node=_NODE, as_json=log_format is config.LogFormat.JSON, verbose=output.verbose)
    with signals.stop_on_signals() as stop, collector.looking():
        health = Health(stop)
        pages: dict[str, Page] = {"/metrics": numbers, "/livez": health.livez, "/readyz": health.readyz}
        with endpoint.serving(where, pages) as address, observing.managed(stop, health):
            health.up()  # ready even while a server is away: brew_up says so
            log.say(_NODE, f"http serves {', '.join(pages)} on {address.host}:{address.port}")
            while not stop.wait(_SLICE_S):
                pass


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: brewctl metrics --once")(metrics)
