"""Messages as openpi's clients write them: msgpack, with arrays as maps of their bytes.

    array   {b'__ndarray__': True, b'data': bytes, b'dtype': '<f4', b'shape': [2, 3]}
    scalar  {b'__npgeneric__': True, b'data': 1.5, b'dtype': '<f4'}

Nothing in a message is ever executed, and what one of them makes here is bounded by `Bounds`
whatever it says of itself. The package msgpack-numpy reads the same form, and falls back to pickle.
"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from sigma_jax.errors import UserError

ARRAY, SCALAR = '__ndarray__', '__npgeneric__'
DTYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248])')
SIDE = 2**31  # of an array, entries, at most


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a message may hold; arrays of numbers are bounded by its bytes alone.

    Attributes:
      bytes: of the whole message.
      containers: maps and lists in it, arrays of numbers included.
      entries: of one map or list.
      depth: of maps and lists in each other.
    """

    bytes: int = 32 * 2**20
    containers: int = 256
    entries: int = 4096
    depth: int = 8


def pack(message: Any) -> bytes:
    """A message as bytes.

    Args:
      message: maps, lists, texts, numbers, bytes, and arrays of numbers or truths.

    Returns:
      As the module says.

    Raises:
      UserError: an array of another kind (objects, records, complex numbers), another object.
    """
    return msgpack.packb(message, default=_written)


def _written(x: Any) -> dict[bytes, Any]:
    """A value that msgpack does not know."""
    if isinstance(x, np.ndarray | np.generic) and DTYPE.fullmatch(x.dtype.str):
        kind, data = (SCALAR, x.item()) if isinstance(x, np.generic) else (ARRAY, x.tobytes())
        found = {kind.encode(): True, b'data': data, b'dtype': x.dtype.str}
        return found if kind == SCALAR else found | {b'shape': x.shape}
    what = f'an array of {x.dtype}' if isinstance(x, np.ndarray | np.generic) else type(x).__name__
    raise UserError(
        f'expected texts, numbers and arrays of numbers to send, got {what}; convert it'
    )


def unpack(data: bytes, bounds: Bounds = Bounds()) -> Any:
    """A message from its bytes; arrays are views of them, not to be written to.

    Args:
      data: as `pack` or a client of openpi's writes them; keys may be bytes or texts.
      bounds: that it must keep.

    Returns:
      The message; its keys are texts.

    Raises:
      UserError: it is cut, no msgpack, beyond the bounds, or holds an array that is none.
    """
    if len(data) > bounds.bytes:
        raise UserError(f'expected a message of at most {bounds.bytes:,} bytes, got {len(data):,}')
    reader = _Reader(bounds)
    try:
        found = msgpack.unpackb(
            data,
            object_pairs_hook=reader.read_map,
            list_hook=reader.read_list,
            ext_hook=_no_extension,
            max_array_len=bounds.entries,
            max_map_len=bounds.entries,
        )
    except UserError:
        raise
    except Exception as error:  # every way in which bytes can be no message
        what = str(error)[:80] or type(error).__name__
        raise UserError(
            f'expected a message in msgpack, got {len(data):,} bytes that are none ({what}); send '
            'whole messages as binary frames'
        ) from None
    _check(found, bounds.depth)
    return found


class _Reader:
    """Maps and lists as they are read, from the innermost."""

    def __init__(self, bounds: Bounds):
        self._bounds, self._count = bounds, 0

    def read_list(self, values: list[Any]) -> list[Any]:
        self._one_more()
        return values

    def read_map(self, pairs: list[tuple[Any, Any]]) -> Any:
        self._one_more()
        found = {_text(key): value for key, value in pairs}
        if len(found) < len(pairs):
            raise UserError('expected each key of a map once, got one twice; send it once')
        if ARRAY in found:
            return _array(found)
        return _scalar(found) if SCALAR in found else found

    def _one_more(self) -> None:
        self._count += 1
        if self._count > self._bounds.containers:
            raise UserError(
                f'expected at most {self._bounds.containers} maps and lists in a message, got '
                'more; send numbers as arrays'
            )


def _text(key: Any) -> str:
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise UserError('expected keys that are texts, got bytes that are none') from None
    return key


def _array(found: Mapping[str, Any]) -> np.ndarray:
    """An array, a view of the message's bytes."""
    data, shape = found.get('data'), found.get('shape')
    dtype = _dtype(found.get('dtype'))
    whole = isinstance(shape, list) and len(shape) <= 8
    if not whole or not all(type(n) is int and 0 <= n < SIDE for n in shape):  # type: ignore
        told = reprlib.repr(shape)
        raise UserError(f'expected the shape of an array as a list of sizes, got {told:.60}')
    assert isinstance(shape, list)
    count = math.prod(shape)
    if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
        got = f'{len(data):,} bytes' if isinstance(data, bytes) else type(data).__name__
        raise UserError(
            f'expected {count * dtype.itemsize:,} bytes for an array of {dtype.str} {shape}, got '
            f'{got}'
        )
    return np.ndarray(shape, dtype, data)


def _scalar(found: Mapping[str, Any]) -> np.generic:
    """A number of a dtype."""
    data, dtype = found.get('data'), _dtype(found.get('dtype'))
    if not isinstance(data, bool | int | float):
        raise UserError(f'expected a number as the data of a scalar, got {type(data).__name__}')
    try:
        return dtype.type(data)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f'expected a number of {dtype.str}, got {_short(data)}') from None


def _dtype(name: Any) -> np.dtype:
    if isinstance(name, bytes):
        name = name.decode('latin1')
    if not isinstance(name, str) or not DTYPE.fullmatch(name):
        raise UserError(
            f'expected the dtype of an array of numbers or truths, got {_short(name)}; '
            'convert it, to float32 or uint8, say'
        )
    return np.dtype(name)


def _no_extension(kind: int, _: bytes) -> Any:
    raise UserError(f'expected no extension types in a message, got type {kind}')


def _check(message: Any, deepest: int) -> None:
    """Depth and kinds of what was read, without recursion."""
    level, depth = [message], 0
    while level:
        inner: list[Any] = []
        for x in level:
            if isinstance(x, dict):
                inner += x.values()
            elif isinstance(x, list):
                inner += x
            elif not isinstance(
                x, str | bytes | int | float | np.ndarray | np.generic | type(None)
            ):
                raise UserError(f'expected numbers, texts and arrays, got {type(x).__name__}')
        depth += any(isinstance(x, dict | list) for x in level)
        if depth > deepest:
            raise UserError(f'expected maps and lists at most {deepest} deep, got deeper ones')
        level = inner


def _short(x: Any) -> str:
    """At most 60 characters of something that a client sent."""
    text = repr(x) if isinstance(x, str | bytes | int | float | None) else type(x).__name__
    return text if len(text) <= 60 else f'{text[:57]}...'
