"""TFRecord files without TensorFlow: records behind a length, both with checksums.

A record is: length (8 bytes, little endian), masked CRC-32C of these 8 bytes, the data, masked
CRC-32C of the data.
"""

import dataclasses
import struct
from pathlib import Path

from sigma_jax.data.rlds.crc32c import masked_crc32c
from sigma_jax.errors import UserError

_HEAD = struct.Struct('<QI')
_TAIL = struct.Struct('<I')


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a record's data lie in a file."""

    path: Path
    offset: int
    length: int


def list_records(path: Path) -> list[Place]:
    """The places of a file's records, from their lengths alone: no data are read.

    Args:
      path: of the file.

    Returns:
      One place a record.

    Raises:
      UserError: a missing or cut file, or a length with a wrong checksum.
    """
    if not path.is_file():
        raise UserError(f'expected records at {path}, got nothing there; copy the data set again')
    size, offset, places = path.stat().st_size, 0, []
    with path.open('rb') as file:
        while offset < size:
            file.seek(offset)
            length = _length(file.read(_HEAD.size), path, offset)
            end = offset + _HEAD.size + length + _TAIL.size
            if end > size:
                raise UserError(
                    f'expected a record of {length} bytes at {offset} in {path}, got only '
                    f'{size - offset} bytes up to the end; the file is cut short, copy it again'
                )
            places.append(Place(path, offset + _HEAD.size, length))
            offset = end
    return places


def read_record(place: Place) -> bytes:
    """The data of a record.

    Args:
      place: of `list_records`.

    Returns:
      Its bytes.

    Raises:
      UserError: their checksum differs.
    """
    with place.path.open('rb') as file:
        file.seek(place.offset)
        data = file.read(place.length)
        tail = file.read(_TAIL.size)
    if len(tail) != _TAIL.size or masked_crc32c(data) != _TAIL.unpack(tail)[0]:
        raise UserError(
            f'expected the record at {place.offset} in {place.path} to match its checksum, got '
            'another; the file is damaged, copy it again'
        )
    return data


def _length(head: bytes, path: Path, offset: int) -> int:
    if len(head) == _HEAD.size:
        length, crc = _HEAD.unpack(head)
        if masked_crc32c(head[:8]) == crc:
            return length
    raise UserError(
        f'expected the length of a TFRecord with its checksum at {offset} in {path}, got other '
        'bytes; the file is damaged, compressed or no TFRecord'
    )
