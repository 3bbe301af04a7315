"""The soak without servers: what its looks come to."""

from brewctl.lab.bench import soak
from brewctl.lab.bench.figures import Figure
from brewctl.lab.bench.soak import SoakLook


def look(mb: float, p99_ms: float, *, effect_ms: float | None = 30.0) -> SoakLook:
    return SoakLook(
        at_s=60,
        table_mb={"outbox": mb, "processed_events": mb / 2},
        partitions={"outbox": 5, "processed_events": 5},
        dead_rows={"outbox": 0, "processed_events": 0},
        records=1000,
        wal_mb_s=0.5,
        calls_p50_ms=5,
        calls_p99_ms=p99_ms,
        effect_p50_ms=effect_ms,
        effect_p99_ms=effect_ms,
        memory_mb={"order-1": 80.0},
    )


def found(looks: list[SoakLook], *, judged: bool = True, failed: int = 0) -> dict[str, Figure]:
    return {each.name: each for each in soak.figures(looks, failed=failed, judged=judged)}


def test_a_size_is_the_most_of_a_third_and_a_time_the_median() -> None:
    looks = [look(1, 10), look(9, 30), look(2, 20), look(50, 500), look(50, 500), look(50, 500)]
    figures = found([*looks, look(8, 40), look(3, 20), look(4, 30)])
    assert (figures["soak, outbox"].value, figures["soak, outbox"].floor) == (8, 9)
    assert (figures["soak, create p99"].value, figures["soak, create p99"].floor) == (30, 20)
    assert figures["soak, create p99"].ratio == 1.5
    assert figures["soak, outbox"].judged


def test_a_table_that_goes_on_growing_misses_and_a_short_soak_is_not_judged() -> None:
    looks = [look(mb, 20) for mb in range(1, 13)]
    grown = found(looks)["soak, outbox"]
    assert grown.at_most is not None
    assert grown.ratio == 3
    assert grown.ratio > grown.at_most
    assert not found(looks, judged=False)["soak, outbox"].judged


def test_calls_that_failed_always_count_and_an_effect_that_nobody_saw_does_not() -> None:
    figures = found([look(1, 10, effect_ms=None)] * 3, judged=False, failed=2)
    assert (figures["soak, calls that failed"].value, figures["soak, calls that failed"].at_most) == (2, 0)
    assert figures["soak, end to end p99"].value is None
    assert figures["soak, end to end p99"].optional
