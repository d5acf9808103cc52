"""What openpi's clients write is read, and nothing else is; a message cannot make more than its
bounds say.
"""

import struct
import tracemalloc

import msgpack
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.policies.serving.openpi.wire import Bounds, pack, unpack

DTYPES = ('|b1', '|u1', '|i1', '<u2', '<i2', '<u4', '<i4', '<u8', '<i8', '<f2', '<f4', '<f8', '>f4')


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (0, 4), (2, 1, 3)])
def test_arrays_come_back_bit_for_bit(dtype, shape):
    rng = np.random.default_rng(0)
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    array = np.frombuffer(rng.bytes(size), dtype).reshape(shape)
    if dtype == '|b1':
        array = array.view(np.uint8) % 2 == 1
    found = unpack(pack({'x': array}))['x']
    assert (found.dtype.str, found.shape) == (array.dtype.str, shape)
    assert found.tobytes() == array.tobytes() and not found.flags.writeable


def test_an_array_that_lies_otherwise_in_memory_comes_back_the_same():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1].T
    assert np.array_equal(unpack(pack(array)), array)


@pytest.mark.parametrize('value', [np.float32(1.5), np.int64(-3), np.bool_(True), np.uint8(255)])
def test_scalars_keep_their_dtype(value):
    found = unpack(pack([value]))[0]
    assert found == value and type(found) is type(value)


def test_plain_messages_come_back():
    message = {'a': [1, -2.5, None, True, 'ä'], 'b': {'c': {'d': b'\0\1'}}}
    assert unpack(pack(message)) == message
    assert unpack(pack({'t': (1, 2)})) == {'t': [1, 2]}


def test_it_is_openpis_form_to_the_byte():
    """Their packer: keys of its maps are bytes, the shape a list, the dtype numpy's letters."""
    array = np.arange(6, dtype='<f4').reshape(2, 3)
    theirs = {b'__ndarray__': True, b'data': array.tobytes(), b'dtype': '<f4', b'shape': (2, 3)}
    assert pack({'actions': array}) == msgpack.packb({'actions': theirs})
    scalar = {b'__npgeneric__': True, b'data': 2.5, b'dtype': '<f4'}
    assert pack(np.float32(2.5)) == msgpack.packb(scalar)


@pytest.mark.parametrize('kind', [str, str.encode])
def test_keys_may_be_texts_or_bytes(kind):
    array = {
        kind('__ndarray__'): True,
        kind('data'): b'\1\2',
        kind('dtype'): kind('|u1'),
        kind('shape'): [2],
    }
    found = unpack(msgpack.packb({kind('observation/state'): array}))
    assert list(found) == ['observation/state']
    assert found['observation/state'].tolist() == [1, 2]


@pytest.mark.parametrize(
    'value',
    [
        np.array([object()]),
        np.zeros(2, [('a', 'f4')]),
        np.zeros(2, complex),
        np.complex64(1j),
        np.array(['text']),
        np.datetime64('2020-01-01'),
        {1, 2},
        object(),
    ],
    ids=lambda value: getattr(getattr(value, 'dtype', None), 'name', type(value).__name__),
)
def test_what_is_no_number_is_not_sent(value):
    with pytest.raises(UserError, match='expected texts, numbers and arrays of numbers to send'):
        pack({'x': value})


def array(**changes) -> dict:
    """An array in openpi's form, changed."""
    plain = {'__ndarray__': True, 'data': b'\0' * 8, 'dtype': '<f4', 'shape': [2]}
    return {key: x for key, x in (plain | changes).items() if x is not ...}


def nested(depth: int) -> bytes:
    return b'\x91' * depth + b'\xc0'


BAD = {
    'nothing': (b'', 'got 0 bytes that are none'),
    'reserved': (b'\xc1', 'expected a message in msgpack'),
    'cut': (pack({'x': np.zeros(9)})[:-3], r'\(Unpack failed: incomplete input\)'),
    'two': (b'\x01\x02', 'expected a message in msgpack'),
    'long list': (b'\xdd\xff\xff\xff\xff', 'exceeds max_array_len'),
    'long map': (b'\xdf\xff\xff\xff\xff', 'exceeds max_map_len'),
    'long bytes': (b'\xc6\xff\xff\xff\xff', 'expected a message in msgpack'),
    'long text': (b'\xdb\xff\xff\xff\xff', 'expected a message in msgpack'),
    'no text': (b'\xa1\xff', 'expected a message in msgpack'),
    'no text as a key': (b'\x81\xc4\x01\xff\x01', 'expected keys that are texts'),
    'number as a key': (b'\x81\x01\x02', 'int is not allowed for map key'),
    'a key twice': (b'\x82\xa1a\x01\xc4\x01a\x02', 'expected each key of a map once'),
    'deep': (nested(9), 'at most 8 deep'),
    'very deep': (nested(100_000), 'expected a message in msgpack'),
    'many lists': (b'\xdc\x01\x01' + b'\x90' * 257, 'at most 256 maps and lists'),
    'extension': (b'\xd4\x05a', 'no extension types in a message, got type 5'),
    'timestamp': (b'\xd6\xff\0\0\0\0', 'got Timestamp'),
    'pickle': (b'\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os', 'expected a message in msgpack'),
    'short data': (array(data=b'\0' * 7), r'expected 8 bytes for an array of <f4 \[2\], got 7'),
    'long data': (array(data=b'\0' * 9), 'expected 8 bytes .*, got 9 bytes'),
    'text as data': (array(data='\0' * 8), 'expected 8 bytes .*, got str'),
    'no data': (array(data=...), 'expected 8 bytes .*, got NoneType'),
    'objects': (array(dtype='|O'), r"dtype of an array of numbers or truths, got '\|O'"),
    'records': (array(dtype='<f4,<f4'), "got '<f4,<f4'"),
    'void': (array(dtype='|V4'), r"got '\|V4'"),
    'complex': (array(dtype='<c8'), "got '<c8'"),
    'dates': (array(dtype='<M8[s]'), r"got '<M8\[s\]'"),
    'number as dtype': (array(dtype=4), 'got 4'),
    'list as dtype': (array(dtype=['<f4']), 'got list'),
    'no dtype': (array(dtype=...), 'got None'),
    'long dtype': (array(dtype='<f4' * 1000), r"got '<f4<f4.*\.\.\."),
    'no shape': (array(shape=...), 'expected the shape of an array as a list of sizes, got None'),
    'shape -1': (array(shape=[-1]), 'as a list of sizes'),
    'a shape told': (array(shape=[-1]), r'sizes, got \[-1\]'),
    'shape of truths': (array(shape=[True, 2]), 'as a list of sizes'),
    'shape of halves': (array(shape=[2.0]), 'as a list of sizes'),
    'shape of many': (array(shape=[1] * 9), 'as a list of sizes'),
    'huge shape': (array(shape=[2**31]), 'as a list of sizes'),
    'large shape': (array(shape=[2**30, 2**30]), 'expected 4,611,686,018,427,387,904 bytes'),
    'huge and empty': (array(shape=[2**30] * 7 + [0], data=b''), 'array is too big'),
    'scalar of a list': ({'__npgeneric__': True, 'data': [1], 'dtype': '<f4'}, 'got list'),
    'scalar too large': ({'__npgeneric__': True, 'data': 999, 'dtype': '|u1'}, 'got 999'),
    'scalar of objects': ({'__npgeneric__': True, 'data': 1, 'dtype': '|O'}, "got '|O'"),
}


@pytest.mark.parametrize('name', BAD)
def test_a_wrong_message_is_told_in_a_sentence(name):
    message, sentence = BAD[name]
    data = message if isinstance(message, bytes) else msgpack.packb({'x': message})
    with pytest.raises(UserError, match=sentence) as caught:
        unpack(data)
    assert len(str(caught.value)) < 300


def test_a_message_larger_than_the_bound_is_not_looked_at():
    with pytest.raises(UserError, match='at most 10 bytes, got 11'):
        unpack(b'\xc1' * 11, Bounds(bytes=10))


def test_wide_messages_make_no_more_than_the_bounds_say():
    """A megabyte of lists of a million elements in all, and maps whose heads promise millions."""
    wide = [
        b'\xdd' + struct.pack('>I', 4096) + (b'\xdc\x10\x00' + b'\xc0' * 4096) * 300,
        (b'\xdc\x10\x00' * 1000) + b'\xc0' * 1000,
        b'\xdc\x10\x00' + b'\x80' * 4096,
    ]
    for data in wide:
        tracemalloc.start()
        with pytest.raises(UserError):
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50 * 2**20


def test_cut_anywhere_it_is_an_error_and_no_other():
    whole = pack({'observation/state': np.arange(3.0), 'prompt': 'lift', 'n': np.float32(1)})
    for end in range(len(whole)):
        with pytest.raises(UserError):
            unpack(whole[:end])


def test_any_byte_may_be_another():
    """It is read, or a UserError: nothing else comes out."""
    rng = np.random.default_rng(0)
    whole = pack({'observation/state': np.arange(3.0), 'prompt': 'lift', 'n': np.float32(1)})
    read = 0
    for _ in range(3000):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            broken[place] = rng.integers(0, 256)
        try:
            unpack(bytes(broken))
            read += 1
        except UserError:
            pass
    assert 0 < read < 3000
