"""Messages that are wrong in every way that somebody thought of, by number."""

import struct
from collections.abc import Iterator

import numpy as np

from sigma_jax.policies.serving.lerobot import wire
from tests.policies.serving.lerobot.client import JOINTS, pickled, readings, recorded, seen

HEAD = b'\x80\x04'
NAMES = ('os.getcwd', 'builtins.list', 'numpy.zeros', 'torch.tensor', 'collections.OrderedDict')


def broken(number: int) -> Iterator[bytes]:
    """The parts of one observation, none of which is right.

    Args:
      number: another one for each.
    """
    random = np.random.default_rng(number)
    kind = _KINDS[number % len(_KINDS)]
    return kind(random)


def _cut(random) -> Iterator[bytes]:
    whole = recorded()['pickle/4']
    return wire.write_parts(whole[: random.integers(len(whole))])


def _parts_that_end_early(random) -> Iterator[bytes]:
    return iter(list(wire.write_parts(seen(), 500))[: -random.integers(1, 5)])


def _parts_out_of_order(random) -> Iterator[bytes]:
    parts = list(wire.write_parts(seen(), 500))
    return iter([parts[n] for n in random.permutation(range(1, len(parts)))])


def _no_protobuf(random) -> Iterator[bytes]:
    return iter([b'\x07' + random.bytes(100)])


def _no_pickle(random) -> Iterator[bytes]:
    return wire.write_parts(b'\x00' + random.bytes(random.integers(1, 3000)))


def _wrong_type(random) -> Iterator[bytes]:
    name = random.choice([*JOINTS, 'up', 'task'])
    return wire.write_parts(seen(observation=readings(**{name: [1, 2]})))


def _wrong_shape(random) -> Iterator[bytes]:
    shape = random.integers(1, 9, random.choice([1, 2, 4]))
    return wire.write_parts(seen(observation=readings(up=np.zeros(shape, np.uint8))))


def _not_finite(random) -> Iterator[bytes]:
    value = float(random.choice([np.nan, np.inf, -np.inf]))
    return wire.write_parts(seen(observation=readings(**{random.choice(JOINTS): value})))


def _deep(random) -> Iterator[bytes]:
    depth = int(random.integers(2000, 60_000))
    body = random.choice([b']' * depth + b'a' * (depth - 1), b')' + b'\x85' * depth])
    return wire.write_parts(HEAD + bytes(body) + b'.')


def _nested(random) -> Iterator[bytes]:
    inner: list = []
    for _ in range(random.integers(2, 90)):
        inner = [inner]
    return wire.write_parts(seen(observation=readings(more=inner)))


def _unknown_field(random) -> Iterator[bytes]:
    return wire.write_parts(seen(**{f'field{random.integers(99)}': 1}))


def _another_object(random) -> Iterator[bytes]:
    return wire.write_parts(pickled('RemotePolicyConfig', {'a': int(random.integers(9))}))


def _name_outside_the_list(random) -> Iterator[bytes]:
    module, _, last = str(random.choice(NAMES)).rpartition('.')
    return wire.write_parts(HEAD + f'c{module}\n{last}\n)R.'.encode())


def _claims_more_than_it_has(random) -> Iterator[bytes]:
    code = random.choice([b'B', b'X'])
    size = struct.pack('<I', int(random.integers(2**20, 2**32 - 1)))
    return wire.write_parts(HEAD + bytes(code) + size + b'a.')


_KINDS = (
    *(_cut, _parts_that_end_early, _parts_out_of_order, _no_protobuf, _no_pickle),
    *(_wrong_type, _wrong_shape, _not_finite, _deep, _nested, _unknown_field),
    *(_another_object, _name_outside_the_list, _claims_more_than_it_has),
)
