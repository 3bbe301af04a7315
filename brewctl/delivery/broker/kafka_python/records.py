"""Reading one record of a batch. Importing this module replaces the library's code.

The library fails on a whole batch if the name of a header is not UTF-8, so that no consumer would ever get past such a
record. It is also slow: it calls a function for each length (two a header), and copies each part twice.
"""

from kafka.errors import CorruptRecordException
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

# A length in one byte, and not negative, has neither of these bits. Only large values have longer lengths.
_LONG_OR_NEGATIVE = 0x81


def _read(batch: DefaultRecordBatch) -> DefaultRecord:
    """Read the next record of a decompressed batch (KIP-98: length, attributes, deltas, parts)."""
    if type(batch._buffer) is bytearray:  # noqa: SLF001
        batch._buffer = bytes(batch._buffer)  # noqa: SLF001 - once a batch: a slice of bytes is one copy
    buffer, at = batch._buffer, batch._pos  # noqa: SLF001
    length, begin = decode_varint(buffer, at)
    time_delta, at = decode_varint(buffer, begin + 1)
    offset_delta, at = decode_varint(buffer, at)
    key, at = _part(buffer, at)
    value, at = _part(buffer, at)
    count, at = decode_varint(buffer, at)
    headers = []
    for _ in range(count):
        if (size := buffer[at]) & _LONG_OR_NEGATIVE:
            size, at = decode_varint(buffer, at)
            if size < 0:
                raise CorruptRecordException(f"the name of a header has {size} bytes")
        else:
            size, at = size >> 1, at + 1
        name = buffer[at : at + size]
        at += size
        if (size := buffer[at]) & _LONG_OR_NEGATIVE:
            held, at = _part(buffer, at)
        else:
            end = at + 1 + (size >> 1)
            held, at = buffer[at + 1 : end], end
        headers.append((name.decode(errors="backslashreplace"), held))
    if at != begin + length or count < 0:
        raise CorruptRecordException(f"a record of {length} bytes has {count} headers and ends at {at - begin}")
    batch._pos = at  # noqa: SLF001
    kind = batch.timestamp_type
    timestamp = batch.max_timestamp if kind == batch.LOG_APPEND_TIME else batch.first_timestamp + time_delta
    return DefaultRecord(batch.base_offset + offset_delta, timestamp, kind, key, value, headers)


def _part(buffer: bytes, at: int) -> tuple[bytes | None, int]:
    """Read a length and its bytes. Return the bytes (None for a negative length) and the offset after them."""
    size, at = decode_varint(buffer, at)
    return (buffer[at : at + size], at + size) if size >= 0 else (None, at)


DefaultRecordBatch._read_msg = _read  # noqa: SLF001
