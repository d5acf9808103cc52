"""Pickles of LeRobot's client are read whole; anything else is refused, and nothing is run."""

import ast
import pathlib
import pickle
import pickletools
import time

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.policies.serving import lerobot
from sigma_jax.policies.serving.lerobot.unpickling import NAMES, Built, read_pickle
from tests.policies.serving.lerobot.client import about, pickled, recorded, seen

HEAD = b'\x80\x04'


def name(module: str, last: str) -> bytes:
    """The instruction that asks for a name."""
    return f'c{module}\n{last}\n'.encode()


def refused(data: bytes, message: str = '') -> None:
    with pytest.raises(UserError, match=r"expected a pickle of LeRobot's client") as caught:
        read_pickle(data)
    assert message in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_an_observation_of_lerobot_is_read_whole(protocol):
    found = read_pickle(recorded()[f'pickle/{protocol}'])
    assert found.name == 'TimedObservation'
    fields, want = found.value, about()
    assert (fields['timestamp'], fields['timestep'], fields['must_go']) == (12.5, 7, True)
    readings = {k: x.value if isinstance(x, Built) else x for k, x in fields['observation'].items()}
    assert readings.keys() == {*want['observation'], 'force', 'depth'}
    assert readings['force'] == want['force'] == 0.25
    assert readings['depth'].dtype == np.uint16 and readings['depth'].tolist() == want['depth']
    for key, value in want['observation'].items():
        got = readings[key]
        assert got == value if isinstance(value, (float, str)) else got.tolist() == value
    assert readings['up'].dtype == np.uint8 and readings['up'].shape == (4, 6, 3)


@pytest.mark.parametrize('protocol', [3, 4, 5])
@pytest.mark.parametrize('code', ['?', 'i1', '<i2', '>i4', '<i8', 'u1', '>u8', 'f2', '<f4', '>f8'])
def test_arrays_are_read_as_numpy_writes_them(protocol, code):
    random = np.random.default_rng(0)
    whole = random.integers(0, 2 if code == '?' else 100, (2, 3, 4)).astype(code)
    arrays = [whole, whole.T, whole[:, ::2], whole[0, 0, 0:0], np.array(whole[0, 0, 0])]
    for array in arrays:
        found = read_pickle(pickle.dumps([array, array], protocol))
        assert len(found) == 2
        for one in found:
            assert one.value.shape == array.shape and np.array_equal(one.value, array)
            assert one.value.dtype == array.dtype
    value = read_pickle(pickle.dumps(whole[1, 1, 1], protocol))
    assert type(value) is type(whole[1, 1, 1].item()) and value == whole[1, 1, 1]


def test_plain_values_are_read():
    plain = {'a': [1, -1, 2**40, 255, 70_000, 0.5, None, True, False, 'ü' * 300, b'x', ()]}
    plain |= {'b': (1, 2), 'c': (1, 2, 3, 4), 'd': {}, 'e': [[]], 'f': b'y' * 300, 'g': 2**900}
    for protocol in (3, 4, 5):
        assert read_pickle(pickle.dumps(plain, protocol)) == plain
    assert read_pickle(pickle.dumps(bytearray(b'z'), 5)) == b'z'


class Calls:
    """Would make a folder, were its pickle carried out."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.mkdir, (self.path,)


def test_nothing_is_run(tmp_path):
    here = tmp_path / 'made'
    refused(pickle.dumps(Calls(here)), 'pathlib')
    refused(seen(observation={'a': Calls(here)}), 'pathlib')
    assert not here.exists()
    pickle.loads(pickle.dumps(Calls(here)))
    assert here.exists()


@pytest.mark.parametrize(
    ('module', 'last'),
    [
        ('os', 'getcwd'),
        ('builtins', 'list'),
        ('builtins', 'getattr'),
        ('collections', 'OrderedDict'),
        ('lerobot.async_inference.helpers', 'TimedAction'),
        ('lerobot.async_inference.helpers', 'os.getcwd'),
        ('lerobot.async_inference.helpers', '__builtins__'),
        ('numpy', 'zeros'),
        ('numpy.core.multiarray', 'fromfile'),
        ('numpy._core.multiarray', 'dtype'),
        ('torch', 'tensor'),
        ('numpy  ndarray', ''),
        ('', 'numpy ndarray'),
    ],
)
def test_names_outside_the_list_are_refused(module, last):
    shown = f'the name {f"{module} {last}".replace(" ", ".")!r}'
    refused(HEAD + name(module, last) + b'.', shown)
    texts = [b'\x8c' + bytes([len(text)]) + text.encode() for text in (module, last)]
    refused(HEAD + texts[0] + texts[1] + b'\x93.', shown)
    refused(HEAD + name(module, last) + b')R.')


def test_the_list_is_what_the_client_needs():
    """Each name occurs in what it sends, or is another release's spelling of one that does."""
    asked = set()
    for data in recorded().values():
        if data[:1] == b'\x80':
            texts = [str(x) for op, x, _ in pickletools.genops(data) if 'UNICODE' in op.name]
            asked |= {f'{a} {b}' for a in texts for b in texts}
            asked |= {str(x) for op, x, _ in pickletools.genops(data) if op.name == 'GLOBAL'}
    other = {path for path in NAMES if path.startswith('numpy.core.')}
    setup = {'lerobot.async_inference.helpers RemotePolicyConfig'}
    assert NAMES.keys() - other - setup <= asked and len(NAMES) == 10
    assert {path.replace('.core.', '._core.') for path in other} <= NAMES.keys()


DTYPE = name('numpy', 'dtype') + b'X\x02\x00\x00\x00u1\x89\x88\x87R'
EMPTY = name('numpy._core.multiarray', '_reconstruct') + name('numpy', 'ndarray') + b'K\x00\x85'
EMPTY += b'C\x01b\x87R'
SEEN = name('lerobot.async_inference.helpers', 'TimedObservation')


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        (EMPTY + b'(K\x01J\xff\xff\xff\x7f\x85' + DTYPE + b'\x89C\x01atb', 'of shape [2147483647]'),
        (EMPTY + b'(K\x01(K\x02K\x03K\x04K\x05K\x06t' + DTYPE + b'\x89C\x01atb', 'numpy did not'),
        (EMPTY + b'(K\x01J\xff\xff\xff\xff\x85' + DTYPE + b'\x89C\x01atb', 'numpy did not write'),
        (EMPTY + b'(K\x01\x88\x85' + DTYPE + b'\x89C\x01atb', 'numpy did not write'),
        (EMPTY + b'(K\x01K\x02\x85' + DTYPE + b'\x89C\x01atb', 'shape [2] in 1 bytes'),
        (EMPTY + b'(K\x01K\x01\x85' + DTYPE + b'\x89]tb', 'numpy did not write'),
        (EMPTY + b'(K\x01K\x01\x85K\x07\x89C\x01atb', 'numpy did not write'),
        (EMPTY + b'(K\x01K\x01\x85' + DTYPE + b'\x89tb', 'numpy did not write'),
        (EMPTY + b'}b', 'numpy did not write'),
        (EMPTY + b'(K\x01K\x01\x85' + DTYPE + b'\x89C\x01atb}b', 'filled twice'),
        (name('numpy', 'dtype') + b'X\x02\x00\x00\x00O8\x89\x88\x87R', "of dtype 'O8'"),
        (name('numpy', 'dtype') + b'X\x03\x00\x00\x00V99\x89\x88\x87R', "of dtype 'V99'"),
        (name('numpy', 'dtype') + b']\x85R', 'of dtype list'),
        (name('numpy', 'dtype') + b')R', 'of dtype NoneType'),
        (DTYPE + b'K\x03X\x01\x00\x00\x00?\x86b', 'numpy did not write'),
        (DTYPE + b'}b', 'numpy did not write'),
        (name('numpy', 'dtype') + b'(K\x01K\x02K\x03K\x04K\x05K\x06tR', 'of dtype int'),
        (name('numpy._core.multiarray', '_reconstruct') + DTYPE + b'\x85R', 'numpy did not write'),
        (name('numpy._core.multiarray', 'scalar') + b')R', 'numpy did not write'),
        (name('numpy._core.numeric', '_frombuffer') + b'K\x01\x85R', 'numpy did not write'),
        (name('numpy', 'ndarray') + b'K\x01\x85R', 'a call of something else'),
        (name('numpy', 'ndarray') + b')\x81', 'an object of something else'),
        (SEEN + b'K\x01\x85\x81', 'an object of something else'),
        (SEEN + b')R', 'a call of something else'),
        (SEEN + b')\x81]b', 'a TimedObservation of list'),
        (SEEN + b')\x81}b}b', 'filled twice'),
        (SEEN + b'}b', '(Built)'),
        (b'}K\x01K\x02s', 'a key of type int'),
        (b'}()K\x02u', 'a key of type tuple'),
        (b'}(X\x01\x00\x00\x00au', 'damaged'),
        (b'NN', 'damaged'),
        (b'(', 'damaged'),
        (b'', 'damaged'),
        (b'0', 'the instruction POP'),
        (b'K\x01\x85R', 'damaged'),
        (b'h\x00', 'damaged'),
        (b'e', 'damaged'),
        (b']K\x01K\x02s', 'a key of type int'),
        (b']X\x01\x00\x00\x00aK\x02s', '(dict)'),
        (b'\x8f', 'the instruction EMPTY_SET'),
        (b'(\x91', 'the instruction FROZENSET'),
        (b'Pid\n', 'the instruction PERSID'),
        (b'K\x01Q', 'the instruction BINPERSID'),
        (b'\x82\x01', 'the instruction EXT1'),
        (b'\x97', 'the instruction NEXT_BUFFER'),
        (b'(ios\ngetcwd\n', 'the instruction INST'),
        (b'(cos\ngetcwd\no', "the name 'os.getcwd'"),
        (b'I123\n', 'the instruction INT'),
        (b'L' + b'9' * 9999 + b'L\n', ''),
        (b'\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa', 'damaged'),
        (b'B\xff\xff\xff\xffa', 'damaged'),
        (b'X\x01\x00\x00\x00\xff', 'damaged'),
        (b'\xff', 'damaged'),
        (b'K\x01K\x02\x93', 'something.that.is.no.text'),
    ],
)
def test_other_instructions_are_refused(body, message):
    refused(HEAD + body + b'.', message)


def test_a_deep_or_long_pickle_costs_no_more_than_its_size():
    start = time.perf_counter()
    refused(HEAD + b'N' + b'\x85' * 1_000_000 + b'.', 'more than 20,000 instructions')
    refused(HEAD + b']' * 100_000 + b'a' * 99_999 + b'.', 'more than 20,000 instructions')
    # 2**40 leaves, shared; hashing them as a key would take years
    doubled = b'N' + b''.join(b'q%ch%c\x86' % (n, n) for n in range(40))
    refused(HEAD + b'}' + doubled + b'Ns.', 'a key of type tuple')
    # a place in the memory beyond all others
    assert read_pickle(HEAD + b'Nr\xff\xff\xff\xffj\xff\xff\xff\xff\x86.') == (None, None)
    itself = read_pickle(HEAD + b']q\x00h\x00a.')
    assert itself[0] is itself
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_a_pickle_cut_anywhere_is_refused(protocol):
    whole = recorded()[f'pickle/{protocol}']
    for end in range(len(whole)):
        refused(whole[:end])


def test_a_changed_byte_gives_a_value_or_an_error():
    """3,000 changes of one byte; none gives another exception."""
    random, whole = np.random.default_rng(0), recorded()['pickle/4']
    wrong = 0
    for _ in range(3000):
        changed = bytearray(whole)
        changed[random.integers(len(whole))] = random.integers(256)
        try:
            read_pickle(bytes(changed))
        except UserError:
            wrong += 1
    assert 1000 < wrong < 3000


def test_the_server_has_no_unpickler():
    """And neither LeRobot nor PyTorch: what a client sends is data."""
    files = sorted(pathlib.Path(lerobot.__file__).parent.rglob('*.py'))
    assert len(files) > 5
    for file in files:
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition('.')[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition('.')[0])
        assert not found & {'pickle', 'marshal', 'shelve', 'torch', 'lerobot'}
    assert read_pickle(pickled('TimedObservation', {'a': 1})).value == {'a': 1}
