"""The bytes of LeRobot's messages (`transport.AsyncInference`), and long ones in parts.

Four messages of at most two fields do not need protobuf's compiler or its package:

    Empty                     nothing
    PolicySetup, Actions      data = 1 (bytes)
    Observation               transfer_state = 1 (number), data = 2 (bytes)
"""

from collections.abc import Iterator

from sigma_jax.errors import UserError

BEGIN, MIDDLE, END = 1, 2, 3  # transfer_state: places of a part in its whole
PART = 2 * 1024 * 1024  # bytes of data a part, as LeRobot's client cuts
EMPTY = b''

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5  # how a field is written
_FIXED = {_EIGHT: 8, _FOUR: 4}


def write_data(data: bytes) -> bytes:
    """A message whose one field is bytes: PolicySetup or Actions.

    Args:
      data: of the field; b'' leaves it away, as protobuf does.

    Returns:
      The message.
    """
    return _tag(1, data) if data else EMPTY


def read_data(message: bytes) -> bytes:
    """The bytes in a PolicySetup or an Actions.

    Args:
      message: as it came.

    Returns:
      Its data; b'' where there is none.

    Raises:
      UserError: it is no such message.
    """
    return _bytes(_fields(message).get(1, b''), message)


def write_parts(data: bytes, size: int = PART) -> Iterator[bytes]:
    """An observation as LeRobot's client sends it: parts, the last of which says so.

    Args:
      data: all of it.
      size: most bytes a part.

    Yields:
      Messages.
    """
    for start in range(0, len(data), size):
        last = start + size >= len(data)
        place = END if last else MIDDLE if start else BEGIN
        yield bytes([_key(1, _VARINT), place]) + _tag(2, data[start : start + size])


class Parts:
    """Puts an observation together.

    Args:
      limit: most bytes of the whole.

    Examples:
      >>> from sigma_jax.policies.serving.lerobot import wire
      >>> parts = wire.Parts(limit=100)
      >>> [parts.add(part) for part in wire.write_parts(b'abcde', size=2)]
      [None, None, b'abcde']
    """

    def __init__(self, limit: int):
        self._limit, self._got, self._size = limit, list[bytes](), 0

    def add(self, message: bytes) -> bytes | None:
        """Takes the next part.

        Args:
          message: as it came.

        Returns:
          The whole with the last part, None before.

        Raises:
          UserError: it is no part, comes out of order, or makes too much of it.
        """
        fields = _fields(message)
        place, data = fields.get(1, 0), _bytes(fields.get(2, b''), message)
        if not isinstance(place, int):
            raise _damaged(message)
        if place not in ((MIDDLE, END) if self._got else (BEGIN, END)):
            raise UserError(
                f'expected the {"next or last" if self._got else "first or only"} part of an '
                f'observation, got one of transfer state {place}; send it anew'
            )
        self._size += len(data)
        if self._size > self._limit:
            raise UserError(
                f'expected an observation of at most {self._limit:,} bytes, got {self._size:,} or '
                'more; send smaller frames, or give the server a larger limit'
            )
        self._got.append(data)
        return b''.join(self._got) if place == END else None


def _fields(message: bytes) -> dict[int, int | bytes]:
    """{number: value} of a message; of a field that is repeated the last one, as in protobuf."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            found[number], at = _varint(message, at)
            continue
        if kind == _LENGTH:
            size, at = _varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise _damaged(message)
        if not number or at + size > len(message):
            raise _damaged(message)
        found[number] = message[at : at + size]
        at += size
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for n, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    raise _damaged(message)


def _bytes(value: int | bytes, message: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _damaged(message)
    return value


def _tag(number: int, data: bytes) -> bytes:
    size, head = len(data), bytearray([_key(number, _LENGTH)])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + data


def _key(number: int, kind: int) -> int:
    return number << 3 | kind


def _damaged(message: bytes) -> UserError:
    start = message[:8].hex(' ')
    return UserError(
        f'expected a message of transport.AsyncInference, got {len(message):,} bytes that are none '
        f'({start} ...); use the client of LeRobot 0.6'
    )
