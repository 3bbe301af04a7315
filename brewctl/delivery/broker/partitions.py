"""How many partitions a topic of ours has, and which of them a key belongs to.

By Kafka's own rule, so that every producer agrees. The client library's own code for it goes byte by byte, and takes
twice as long.
"""

import struct
from functools import lru_cache

PARTITIONS = 6

_SEED = 0x9747B28C
_FACTOR = 0x5BD1E995
_32_BITS = 0xFFFFFFFF
_WORD = 4  # bytes


def partition_for(key: bytes, partitions: int) -> int:
    """Return a key's partition of so many: org.apache.kafka.common.utils.Utils, murmur2 and toPositive."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    mixed = _SEED ^ len(data)
    whole = len(data) // _WORD
    for word in _words(whole).unpack_from(data):
        scrambled = word * _FACTOR & _32_BITS
        mixed = (mixed * _FACTOR & _32_BITS) ^ ((scrambled ^ scrambled >> 24) * _FACTOR & _32_BITS)
    if rest := data[whole * _WORD :]:
        mixed = (mixed ^ int.from_bytes(rest, "little")) * _FACTOR & _32_BITS
    mixed = (mixed ^ mixed >> 13) * _FACTOR & _32_BITS
    return mixed ^ mixed >> 15


@lru_cache(maxsize=64)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")
