"""What `brewctl db retention` refuses before it asks a server, and how it writes times and sizes."""

from datetime import UTC, datetime, timedelta

import pytest

from brewctl.cli.retention import _age, _delta, _size, _span, retention
from brewctl.delivery.retention.plan import Content, PartitionVerdict, Reason, TablePartition
from brewctl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("7d", timedelta(days=7)),
        ("36h", timedelta(hours=36)),
        ("5m", timedelta(minutes=5)),
        ("9s", timedelta(seconds=9)),
        ("0", None),
        ("0d", None),
    ],
)
def test_times_are_numbers_with_a_unit_and_0_is_never(text: str, span: timedelta | None) -> None:
    assert _delta(_span(text)) == span


@pytest.mark.parametrize("text", ["", "7", "7w", "d", "-1d", "1.5d", "7 d", "\u0667d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        _span(text)


def test_a_dry_run_that_is_to_change_something_is_refused() -> None:
    with pytest.raises(UsageError, match="--dry-run changes nothing"):
        retention(dry_run=True, every=5)
    with pytest.raises(UsageError, match="--dry-run changes nothing"):
        retention(dry_run=True, partition_rows=1000)


def test_sizes_and_ages_are_short() -> None:
    assert [_size(count) for count in (0, 1023, 1024, 5 * 1024**2, 3 * 1024**4)] == [
        "0 B", "1023 B", "1 KiB", "5 MiB", "3072 GiB",
    ]  # fmt: skip
    now = datetime.now(UTC)
    assert [_age(now - timedelta(seconds=seconds)) for seconds in (1, 150, 7300, 200_000)] == [
        "1 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip


def test_a_verdict_counts_what_it_has_looked_at_and_estimates_the_rest() -> None:
    partition = TablePartition("outbox_p0", None, 10, estimate=7)
    contents = [Content("t", "order.created", 0, 3), Content("t", "order.cancelled", 0, 2)]
    looked = PartitionVerdict(partition, contents)
    assert (looked.rows, looked.created, looked.may_go) == (5, 3, True)
    unseen = PartitionVerdict(partition, looked=False)
    assert (unseen.rows, unseen.may_go) == (7, False)
    assert not PartitionVerdict(partition, contents, [Reason("it stays", "nothing")]).may_go
