"""Runs from TensorBoard's event files, read without TensorBoard: of it, only scalars are needed.

A file is a sequence of records: the length (8 bytes), its checksum, the content, its checksum
(tensorflow/core/lib/io/record_writer.h). The content is a message of protocol buffers, Event
(tensorflow/core/util/event.proto); all but a few of its fields are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from vegrad.runs.run import Run
from vegrad.runs.tags import Tags

SOURCE = "TensorBoard"
LONGEST = 1 << 24  # bytes of a record that is looked at: pictures and graphs may be longer
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
STEP, SUMMARY, VALUE, TAG, SIMPLE, TENSOR = 2, 5, 1, 1, 2, 8
KIND, CONTENT, FLOATS, DOUBLES = 1, 4, 5, 6  # of a tensor
SHAPES = {1: "f", 2: "d"}  # float, double
Field = tuple[int, int, bytes | int]


def is_events(first: bytes) -> bool:
    """Return True if a file that begins so is one of records, by the checksum of its first."""
    if len(first) < 12:
        return False
    length, check = struct.unpack("<QI", first[:12])
    return bool(length < LONGEST and check == _masked(first[:8]))


def of_events(files: list[BinaryIO]) -> Run:
    """Return the run of event files, the oldest first; a record that is cut off ends a file.

    Raises:
        ValueError: a file is damaged, or there is no scalar of a known name.
    """
    tags = Tags()
    for file in files:
        for record in _records(file):
            try:
                for name, step, value in _scalars(record):
                    tags.add(name, step, value)
            except (ValueError, struct.error, UnicodeDecodeError, IndexError):
                continue  # a record of another kind
    return tags.run(SOURCE)


def _records(file: BinaryIO) -> Iterator[bytes]:
    while len(head := file.read(12)) == 12:
        length, check = struct.unpack("<QI", head)
        if check != _masked(head[:8]):
            raise ValueError(f"it is damaged before byte {file.tell()}: a checksum is wrong")
        if length > LONGEST:
            file.seek(length + 4, 1)
            continue
        record = file.read(length + 4)
        if len(record) < length + 4:
            return
        yield record[:length]


def _scalars(record: bytes) -> Iterator[tuple[str, float, float]]:
    step, summaries = 0, list[bytes]()
    for number, kind, content in _fields(record):
        if number == STEP and kind == VARINT:
            step = int(content)
        elif number == SUMMARY and isinstance(content, bytes):
            summaries.append(content)
    for summary in summaries:
        for number, _, value in _fields(summary):
            if number == VALUE and isinstance(value, bytes):
                name, size = _value(value)
                if size is not None:
                    yield name, step, size


def _value(content: bytes) -> tuple[str, float | None]:
    name, size = "", None
    for number, kind, part in _fields(content):
        if number == TAG and isinstance(part, bytes):
            name = part.decode()
        elif number == SIMPLE and kind == FOUR and isinstance(part, bytes):
            (size,) = struct.unpack("<f", part)
        elif number == TENSOR and isinstance(part, bytes):
            size = _tensor(part)
    return name, size


def _tensor(content: bytes) -> float | None:
    """Return the number of a tensor that has one; None of others."""
    shape, raw = "", b""
    for number, kind, part in _fields(content):
        if number == KIND and kind == VARINT:
            shape = SHAPES.get(int(part), "")
        elif number in (CONTENT, FLOATS, DOUBLES) and isinstance(part, bytes):
            raw = part
    if not shape or len(raw) != struct.calcsize(shape):
        return None
    return float(struct.unpack(f"<{shape}", raw)[0])


def _fields(message: bytes) -> Iterator[Field]:
    """Make the number, the kind and the content of each field of a message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, place = _varint(message, place)
        elif kind in (EIGHT, FOUR):
            length = 8 if kind == EIGHT else 4
        else:
            raise ValueError("a field of no known kind")
        if place + length > len(message):
            raise ValueError("a field goes on beyond its message")
        yield number, kind, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = message[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("a number that is too long")


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        rest = byte
        for _ in range(8):
            rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
        found.append(rest)
    return tuple(found)


CASTAGNOLI = _table()


def _masked(content: bytes) -> int:
    """Return the checksum of a few bytes, as records have it: CRC-32C, turned and shifted."""
    rest = 0xFFFFFFFF
    for byte in content:
        rest = rest >> 8 ^ CASTAGNOLI[(rest ^ byte) & 255]
    rest ^= 0xFFFFFFFF
    return ((rest >> 15 | rest << 17) + 0xA282EAD8) & 0xFFFFFFFF
