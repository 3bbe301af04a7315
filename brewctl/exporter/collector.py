"""The collector for prometheus_client: a scrape asks all lookers at the same time, and waits for their answers."""

import contextlib
import functools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as Base

from brewctl import __version__
from brewctl.config import Settings
from brewctl.delivery import database, registry
from brewctl.delivery.schema import homes
from brewctl.errors import BrewError
from brewctl.exporter import kafka, letters, postgres
from brewctl.exporter.families import BUILD_INFO, FAMILIES, QUESTION_UP, Sample
from brewctl.exporter.looking import Looker, standing
from brewctl.lifecycle import beside

# A scrape waits so long for all looks together. Prometheus gives up after 10 s by default.
SCRAPE_S = 5.0


@dataclass(frozen=True)
class Problems:
    """Why series are missing from a page: a server that is away, and questions that failed although it answers."""

    away: BrewError | None
    failed: Sequence[str]


class Collector(Base):
    """Asks the servers when it is scraped. Raises UsageError for a malformed downstream or database URL."""

    def __init__(self, settings: Settings, *, within_s: float = SCRAPE_S) -> None:
        settings = settings.impatient
        self._within_s = within_s
        database.place(settings.database_url)  # a malformed URL is a usage error
        groups = [each.group for each in registry.configured(settings)]
        self._lookers = [
            *(
                Looker(postgres.server(home), functools.partial(postgres.opened, home, groups))
                for home in homes.of(settings)
            ),
            Looker(kafka.SERVER, functools.partial(kafka.opened, settings)),
        ]
        # This looker needs both servers. Their own lookers report whether they answer.
        self._letters = Looker("dead letters", letters.opener(settings, within_s=within_s / 2))
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Self]:
        """Run the lookers' threads while the block runs."""
        stop = threading.Event()
        every = [*self._lookers, self._letters]
        actors = {f"metrics-{looker.server}": functools.partial(looker.run, stop) for looker in every}
        with beside(actors, stop):
            yield self

    def collect(self) -> Iterable[Metric]:
        """Return the present metrics of all servers that answered in time."""
        until = time.monotonic() + self._within_s
        asked = [(looker, looker.ask()) for looker in (*self._lookers, self._letters)]
        *looks, of_letters = [looker.answer(number, until=until) for looker, number in asked]
        samples = [
            sample
            for looker, look in zip(self._lookers, looks, strict=True)
            for sample in standing(looker.server, look)
        ]
        if of_letters.away and not any(look.away for look in looks):
            # Both servers answer, but the dead letters can't be read.
            samples.append(Sample(QUESTION_UP, 0, letters.QUESTION))
        return families([Sample(BUILD_INFO, 1, ("metrics", __version__)), *samples, *of_letters.samples])

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def problems(self) -> Problems:
        """Return why series were missing from the last page."""
        looks = [looker.last for looker in (*self._lookers, self._letters)]
        away = next((look.away for look in looks if look.away), None)
        return Problems(away, [text for look in looks for text in look.failed])

    def describe(self) -> Iterable[Metric]:
        """Return the metrics' names and help texts, without asking any server."""
        return [GaugeMetricFamily(family.name, family.help, labels=family.labels) for family in FAMILIES]


def families(samples: Sequence[Sample]) -> Sequence[Metric]:
    """Group samples by family; a family without samples is left out."""
    found = []
    for family in FAMILIES:
        metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
        for sample in samples:
            if sample.family is family:
                metric.add_metric(sample.labels, sample.value)
        if metric.samples:
            found.append(metric)
    return found
