"""A scraper and a prober of a node with `--http`."""

import re
import urllib.error
import urllib.request
from collections import Counter
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until

HTTP = ("--http", "127.0.0.1:0")
_SERVES = re.compile(r"http serves /metrics, /livez, /readyz on (\S+)")
_WITHIN_S = 30.0


class Page(NamedTuple):
    """What a probe got."""

    status: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def place(node: Node) -> str:
    """Where a node serves, as soon as it does."""
    node.wait_for("pages", lambda each: any(_SERVES.search(line) for line in each.lines), timeout_s=60)
    return next(match[1] for line in node.lines if (match := _SERVES.search(line)))


def page(where: str, path: str) -> Page:
    try:
        with urllib.request.urlopen(f"http://{where}{path}", timeout=_WITHIN_S) as answer:
            return Page(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Page(error.code, error.read().decode())


def wait_for(where: str, path: str, status: int, *, saying: str = "") -> Page:
    """Probe until the page has this status, and says this."""
    last: list[Page] = []

    def there() -> bool:
        last[:] = [page(where, path)]
        return last[0].status == status and saying in last[0].text

    try:
        wait_until(f"{path} with {status} {saying}", there, timeout_s=90, every_s=0.1)
    except TimeoutError as error:
        raise AssertionError(f"{error}; the last one was {last}") from None
    return last[0]


def numbers(where: str) -> Counter[str]:
    """Return all samples, as `name{label="value",…}`; one that is not there is 0."""
    found = page(where, "/metrics")
    assert found.status == 200, found.text
    samples: Counter[str] = Counter()
    for family in text_string_to_metric_families(found.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value  # type: ignore[assignment]
    return samples
