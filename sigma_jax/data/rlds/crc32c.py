"""CRC-32C (Castagnoli) of many megabytes in numpy: lanes of a buffer side by side, then joined (RFC
3720, B.4).

A CRC without its initial and final inversion is linear: crc(a + b) = shift(crc(a), len(b)) ^
crc(b), where `shift` feeds zero bytes, which is a 32 x 32 matrix over two elements.
"""

import functools

import numpy as np
from jaxtyping import UInt, UInt8

POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, bits reversed
# TFRecord stores rotated checksums, so that a checksum of checksums is no trivial one
MASK_DELTA = 0xA282EAD8
_LANE = 1024  # bytes; numpy walks along a lane, over all lanes at once
_BITS = np.arange(32, dtype=np.uint32)


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of some bytes.

    Args:
      data: any.

    Returns:
      32 bits.
    """
    whole = len(data) // _LANE * _LANE
    crc = np.full(1, 0xFFFFFFFF, np.uint32)
    if whole:
        lanes = np.frombuffer(data, np.uint8, whole).reshape(-1, _LANE)
        crc = _apply(_shift(whole), crc) ^ _join(_lanes(lanes), _LANE)
    for byte in bytes(data[whole:]):
        crc = _table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return int(crc[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TFRecord files hold it.

    Args:
      data: any.

    Returns:
      32 bits.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


@functools.cache
def _table() -> UInt[np.ndarray, '256']:
    """What one byte does to an empty register."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(POLYNOMIAL), crc >> 1).astype(np.uint32)
    return crc


def _lanes(lanes: UInt8[np.ndarray, 'n l']) -> UInt[np.ndarray, ' n']:
    """The register after each lane, from an empty one."""
    table, crc = _table(), np.zeros(len(lanes), np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return crc


def _join(parts: UInt[np.ndarray, ' n'], length: int) -> np.uint32:
    """The register after all lanes of `length` bytes: neighbours are joined, then pairs of
    neighbours, and so on.
    """
    while len(parts) > 1:
        if len(parts) % 2:  # an empty register before the first lane changes nothing
            parts = np.concatenate([np.zeros(1, np.uint32), parts])
        parts = _apply(_shift(length), parts[::2]) ^ parts[1::2]
        length *= 2
    return parts[0]


def _apply(matrix: UInt[np.ndarray, '32'], crc: UInt[np.ndarray, ' n']) -> UInt[np.ndarray, ' n']:
    """Matrix times register; `matrix` holds its columns as numbers."""
    bits = (crc[:, None] >> _BITS) & 1
    return np.bitwise_xor.reduce(np.where(bits, matrix, 0).astype(np.uint32), axis=1)


@functools.lru_cache(maxsize=64)
def _shift(length: int) -> UInt[np.ndarray, '32']:
    """The matrix that feeds `length` zero bytes, by repeated squaring."""
    one = np.uint32(1) << _BITS
    if not length:
        return one
    if length == 1:
        return _table()[one & 0xFF] ^ (one >> 8)
    half = _shift(length // 2)
    twice = _apply(half, half)
    return _apply(_shift(1), twice) if length % 2 else twice
