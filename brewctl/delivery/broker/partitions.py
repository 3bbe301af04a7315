"""The number of partitions of our topics, and the partition of a key.

The partition follows Kafka's own rule, so that all producers agree. The library's code for that rule goes byte by byte,
and takes twice as long.
"""

import struct
from functools import lru_cache

PARTITIONS = 6

_SEED = 0x9747B28C
_FACTOR = 0x5BD1E995
_32_BITS = 0xFFFFFFFF
_WORD = 4  # bytes


def partition_for(key: bytes, partitions: int) -> int:
    """Return the partition of a key, of `partitions`: Kafka's Utils.toPositive(Utils.murmur2(key)) % partitions."""
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
