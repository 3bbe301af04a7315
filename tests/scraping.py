"""Reading a page of metrics as Prometheus does."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """The values of a page, by name and labels."""

    def __init__(self, text: str) -> None:
        self.values: Mapping[Series, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """One value; None where there is no such series."""
        return self.values.get((name, frozenset(labels.items())))

    def of(self, name: str) -> dict[str, float]:
        """All series of a metric, by the values of their labels in the labels' order."""
        return {
            " ".join(value for _, value in sorted(labels)): found
            for (each, labels), found in self.values.items()
            if each == name
        }

    def names(self) -> set[str]:
        """The metrics that there are."""
        return {name for name, _ in self.values}
