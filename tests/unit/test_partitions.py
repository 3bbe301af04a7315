"""The rule by which Kafka chooses a partition: ours is the client library's, and the library's is Kafka's."""

from hypothesis import example, given
from hypothesis import strategies as st
from kafka.partitioner.default import DefaultPartitioner

from brewctl.delivery.broker.partitions import partition_for


@given(key=st.binary(min_size=1, max_size=200), partitions=st.integers(1, 100))
@example(key=b"order-4bf92f35-77b3-4da6-a3ce-929d0e0e4736", partitions=6)
@example(key=b"\xff" * 7, partitions=6)
def test_a_key_has_the_partition_that_every_producer_gives_it(key: bytes, partitions: int) -> None:
    every = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, every, every)
