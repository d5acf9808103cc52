"""LeRobot's client sends pickles. They are read here without Python's unpickler, instruction by
instruction; what one may build is a list of ten names, and none of them is imported or called.

`read_pickle` gives None, truth values, numbers, texts, bytes, tuples, lists, dictionaries with
texts as keys, and `Built` for what the names stand for. Any other instruction or name is refused.
The number of instructions is bounded, and nothing is hashed but texts, so that no pickle costs more
than its own size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sigma_jax.data.pt.safety import DamagedPickleError, walk_pickle
from sigma_jax.errors import UserError

SETUP, OBSERVATION, ARRAY = 'RemotePolicyConfig', 'TimedObservation', 'ndarray'
_DTYPE, _RECONSTRUCT, _SCALAR, _FROMBUFFER = 'dtype', '_reconstruct', 'scalar', '_frombuffer'
NAMES = {
    f'lerobot.async_inference.helpers {SETUP}': SETUP,
    f'lerobot.async_inference.helpers {OBSERVATION}': OBSERVATION,
    f'numpy {ARRAY}': ARRAY,
    f'numpy {_DTYPE}': _DTYPE,
    # numpy 2 and numpy 1 spell them so
    **{f'numpy.{core}.multiarray {_RECONSTRUCT}': _RECONSTRUCT for core in ('_core', 'core')},
    **{f'numpy.{core}.multiarray {_SCALAR}': _SCALAR for core in ('_core', 'core')},
    **{f'numpy.{core}.numeric {_FROMBUFFER}': _FROMBUFFER for core in ('_core', 'core')},
}
MOST = 20_000  # instructions; an observation of 50 joints and 4 cameras has 300
AXES = 4
_NUMBERS = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'}


@dataclasses.dataclass(eq=False)
class Built:
    """What a name of the list stands for, built of plain values.

    Attributes:
      name: the last part of the name.
      value: of `ARRAY` an array, of `SETUP` and `OBSERVATION` a dictionary of their fields, of a
        dtype that of numpy; None while nothing has filled it.
    """

    name: str
    value: Any = None


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name of the list, on the stack."""

    name: str


_MARK = object()


def read_pickle(data: bytes) -> Any:
    """What a pickle of LeRobot's client says; nothing of it is executed.

    Args:
      data: the pickle, of protocol 3 to 5.

    Returns:
      Plain values and `Built`.

    Raises:
      UserError: it is damaged, too long, or says anything else.
    """
    machine = _Machine()
    try:
        for count, (name, argument) in enumerate(walk_pickle(data)):
            if count == MOST:
                raise _refused(f'more than {MOST:,} instructions')
            if name not in _STEPS:
                raise _refused(f'the instruction {name}')
            _STEPS[name](machine, argument)
        (value,) = machine.pop_marked()
    except (DamagedPickleError, IndexError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _refused(f'a damaged one: {str(error)[:100] or "it ends too early"}') from error
    return value


class _Machine:
    """The pickle machine: a stack of values, and those that it remembers by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = [_MARK]
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Takes the topmost value."""
        if self.stack[-1] is _MARK:
            raise IndexError
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The topmost value, which must be of a kind."""
        if type(self.stack[-1]) is not kind:
            raise _refused(f'a damaged one ({kind.__name__})')
        return self.stack[-1]

    def pop_marked(self) -> list[Any]:
        """Takes what lies above the last mark, and the mark."""
        taken = []
        while self.stack[-1] is not _MARK:
            taken.append(self.stack.pop())
        self.stack.pop()
        return taken[::-1]

    def remember(self, number: int | None) -> None:
        """Remembers the topmost value, by the next number or by one given."""
        if self.stack[-1] is _MARK:
            raise IndexError
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        """Joins the topmost values."""
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def extend(self, items: list[Any]) -> None:
        """Puts items at the end of the list below them."""
        self.top(list).extend(items)

    def set_items(self, pairs: list[Any]) -> None:
        """Puts keys and values into the dictionary below them."""
        if len(pairs) % 2:
            raise IndexError
        if wrong := [key for key in pairs[::2] if type(key) is not str]:
            raise _refused(f'a dictionary with a key of type {type(wrong[0]).__name__}')
        self.top(dict).update(zip(pairs[::2], pairs[1::2], strict=True))

    def set_item(self) -> None:
        """The same with one pair."""
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def name(self, path: str) -> None:
        """Puts a name of the list on the stack."""
        if path not in NAMES:
            raise _refused(f'the name {path.replace(" ", ".")[:200]!r}')
        self.push(_Name(NAMES[path]))

    def name_of_two(self) -> None:
        """The same, its parts being the topmost values."""
        last, module = self.pop(), self.pop()
        texts = type(last) is type(module) is str
        self.name(f'{module} {last}' if texts else 'something that is no text')

    def new(self) -> None:
        """An object of a class, unfilled."""
        arguments, of = self.pop(), self.pop()
        if of not in (_Name(SETUP), _Name(OBSERVATION)) or arguments != ():
            raise _refused('an object of something else')
        self.push(Built(of.name))

    def call(self) -> None:
        """What a function of numpy's would give."""
        arguments, of = self.pop(), self.pop()
        make = _CALLS.get(of.name) if isinstance(of, _Name) else None
        if make is None or type(arguments) is not tuple:
            raise _refused('a call of something else')
        self.push(make(*arguments))

    def build(self) -> None:
        """Fills the object below with its state, once."""
        state = self.pop()
        built: Built = self.top(Built)
        if built.name == _DTYPE:
            built.value = _ordered(built.value, state)
        elif built.value is not None:
            raise _refused('an object that is filled twice')
        elif built.name == ARRAY:
            built.value = _array_of_state(state)
        elif type(state) is dict:
            built.value = state
        else:
            raise _refused(f'a {built.name} of {type(state).__name__}')


def _reconstruct(kind: Any = None, *_: Any) -> Built:
    if kind != _Name(ARRAY):
        raise _wrong_array()
    return Built(ARRAY)


def _dtype(code: Any = None, *_: Any) -> Built:
    if type(code) is not str or code not in _NUMBERS:
        named = repr(code[:40]) if type(code) is str else type(code).__name__
        raise _refused(f'an array of dtype {named}')
    return Built(_DTYPE, np.dtype(code))


def _scalar(dtype: Any = None, data: Any = None, *_: Any) -> Any:
    return _array(data, dtype, ()).item()


def _frombuffer(
    data: Any = None, dtype: Any = None, shape: Any = None, order: Any = None, *_: Any
) -> Built:
    return Built(ARRAY, _array(data, dtype, shape, fortran=order == 'F'))


def _ordered(dtype: np.dtype, state: Any) -> np.dtype:
    """A dtype with the byte order of its state, (version, order, and what plain ones leave out)."""
    order = state[1] if type(state) is tuple and len(state) > 1 else None
    if order not in ('<', '>', '|', '='):
        raise _wrong_array()
    return dtype.newbyteorder('=' if order == '|' else order)


def _array_of_state(state: Any) -> np.ndarray:
    """An array of (version, shape, dtype, Fortran's order or not, data)."""
    if type(state) is not tuple or len(state) != 5:
        raise _wrong_array()
    _, shape, dtype, fortran, data = state
    return _array(data, dtype, shape, fortran=fortran is True)


def _array(data: Any, dtype: Any, shape: Any, fortran: bool = False) -> np.ndarray:
    """An array over its bytes, which must be exactly as many as its shape says."""
    known = isinstance(dtype, Built) and dtype.name == _DTYPE
    if not known or type(data) not in (bytes, bytearray) or type(shape) is not tuple:
        raise _wrong_array()
    if len(shape) > AXES or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise _wrong_array()
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise _refused(f'an array of shape {list(shape)} in {len(data):,} bytes')
    return np.frombuffer(data, dtype.value).reshape(shape, order='F' if fortran else 'C')


def _wrong_array() -> UserError:
    return _refused('an array that numpy did not write')


def _refused(found: str) -> UserError:
    return UserError(
        f"expected a pickle of LeRobot's client, with numbers, texts and arrays only, got {found}; "
        'nothing of it was run: use the client of LeRobot 0.6'
    )


_CALLS: dict[str, Callable[..., Any]] = {
    _RECONSTRUCT: _reconstruct,
    _DTYPE: _dtype,
    _SCALAR: _scalar,
    _FROMBUFFER: _frombuffer,
}
_Step = Callable[[_Machine, Any], None]
_PLAIN: tuple[str, ...] = (
    'BININT',
    'BININT1',
    'BININT2',
    'LONG1',
    'BINFLOAT',
    'SHORT_BINUNICODE',
    'BINUNICODE',
)
_PLAIN += ('BINUNICODE8', 'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8')
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), lambda m, x: None),
    **dict.fromkeys(_PLAIN, lambda m, x: m.push(x)),
    'NONE': lambda m, x: m.push(None),
    'NEWTRUE': lambda m, x: m.push(True),
    'NEWFALSE': lambda m, x: m.push(False),
    'EMPTY_DICT': lambda m, x: m.push({}),
    'EMPTY_LIST': lambda m, x: m.push([]),
    'EMPTY_TUPLE': lambda m, x: m.push(()),
    'TUPLE1': lambda m, x: m.tuple_of(1),
    'TUPLE2': lambda m, x: m.tuple_of(2),
    'TUPLE3': lambda m, x: m.tuple_of(3),
    'TUPLE': lambda m, x: m.push(tuple(m.pop_marked())),
    'MARK': lambda m, x: m.push(_MARK),
    'APPEND': lambda m, x: m.extend([m.pop()]),
    'APPENDS': lambda m, x: m.extend(m.pop_marked()),
    'SETITEM': lambda m, x: m.set_item(),
    'SETITEMS': lambda m, x: m.set_items(m.pop_marked()),
    **dict.fromkeys(('BINPUT', 'LONG_BINPUT'), lambda m, x: m.remember(x)),
    'MEMOIZE': lambda m, x: m.remember(None),
    **dict.fromkeys(('BINGET', 'LONG_BINGET'), lambda m, x: m.push(m.memo[x])),
    'GLOBAL': lambda m, x: m.name(x),
    'STACK_GLOBAL': lambda m, x: m.name_of_two(),
    'NEWOBJ': lambda m, x: m.new(),
    'REDUCE': lambda m, x: m.call(),
    'BUILD': lambda m, x: m.build(),
}
