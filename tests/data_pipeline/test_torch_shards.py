"""`.pt` shards without torch: hostile and damaged files are refused before anything could run, and
the extra named.
"""

import builtins
import collections
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sigma_jax.data.pt import shards
from sigma_jax.data.pt.safety import check_pickle
from sigma_jax.data.shards import export_pt
from sigma_jax.data.shards.directory import Shards, open_shards
from sigma_jax.errors import UserError
from tests import metas

REACHED: list[str] = []


class Hostile:
    """Runs a command when it is unpickled, or would."""

    def __init__(self, call, *arguments) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def write(path: Path, data: bytes, name: str = 'shard/data.pkl', **options) -> Path:
    """A zip file as torch.save writes one, with a pickle of our own."""
    with zipfile.ZipFile(path, 'w', **options) as archive:
        archive.writestr(name, data)
    return path


def saved(value, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol=protocol)


REFUSED = {
    'os.system': (saved([Hostile(os.system, 'touch reached')]), 'posix.system'),
    'eval': (saved([Hostile(eval, '1')]), 'eval'),
    'append': (saved([Hostile(REACHED.append, 'x')]), '__builtin__.getattr'),
    'numpy array': (saved([{'robot_state': np.zeros(3)}]), 'numpy'),
    'numpy number': (saved([{'avg_action_l2': np.float32(1)}]), 'numpy'),
    'a class': (saved([types.SimpleNamespace(a=1)]), 'SimpleNamespace'),
    'newer protocol': (saved([Hostile(os.system, 'touch reached')], 4), 'STACK_GLOBAL'),
    'instance': (b'(S"touch reached"\nios\nsystem\n.', 'INST'),
    'extension': (b'\x80\x02\x82\x01.', 'EXT1'),
    'cut': (saved([{'text': 'lift'}])[:-4], 'a damaged pickle'),
    'torch itself': (b'\x80\x02ctorch\nload\n.', 'torch.load'),
    'torch hub': (
        b'\x80\x02ctorch.hub\nload_state_dict_from_url\n.',
        'torch.hub.load_state_dict_from_url',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_pickle_with_anything_else_is_refused_and_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, expected = REFUSED[name]
    with pytest.raises(UserError) as caught:
        shards.read_shard(write(tmp_path / 'shard_00000.pt', data))
    text = str(caught.value)
    assert expected in text and 'nothing of it was run' in text and '\n' not in text
    assert not REACHED and not (tmp_path / 'reached').exists()


def test_files_that_are_no_plain_zip_are_refused(tmp_path):
    path = tmp_path / 'shard_00000.pt'
    bomb = {'compression': zipfile.ZIP_DEFLATED}
    cases = {
        'File is not a zip file': lambda: path.write_bytes(saved([Hostile(os.system, 'false')])),
        '0 pickles': lambda: write(path, b'', 'shard/other'),
        f'1 pickles and {10**7} bytes in': lambda: write(path, bytes(10**7), **bomb),
        'Is a directory': lambda: (path.unlink(), path.mkdir()),
    }
    for expected, make in cases.items():
        make()
        with pytest.raises(UserError, match='expected a'):
            check_pickle(path)
        assert expected in said(path) or expected == 'Is a directory'
    path.rmdir()
    write(path, saved([collections.OrderedDict(text='lift', numbers=[1, 2.5, None, True])]))
    assert check_pickle(path) is None


def said(path: Path) -> str:
    try:
        check_pickle(path)
    except UserError as error:
        return str(error)
    return ''


def without_torch(monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == 'torch':
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, 'torch', raising=False)
    monkeypatch.setattr(builtins, '__import__', refuse)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / 'shard_00000.pt', saved([{'text': 'lift'}]))
    without_torch(monkeypatch)
    with pytest.raises(UserError, match=r"got none installed; pip install 'sigma_jax\[torch\]'"):
        list(shards.read_windows(path.parent))


@pytest.mark.parametrize('version', ['2.5.1+cpu', '1.13.0'])
def test_a_torch_that_lets_code_run_is_refused(version, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(__version__=version))
    with pytest.raises(
        UserError, match=f'expected torch 2.6 or newer, got {version}'.replace('+', r'\+')
    ):
        shards.import_torch()
    monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(__version__='2.13.0+cpu'))
    assert shards.import_torch().__version__ == '2.13.0+cpu'


def test_arguments_and_folders(tmp_path):
    with pytest.raises(UserError, match=r'expected shard_\*.pt in'):
        shards.list_shards(tmp_path)
    with pytest.raises(UserError, match='shard_size of at least 1, got 0'):
        export_pt.export(Shards(tmp_path, metas.meta()), tmp_path / 'out', shard_size=0)
    with pytest.raises(UserError, match=r'got no meta.json; run prepare_data.py'):
        export_pt.export(open_shards(tmp_path), tmp_path / 'out')
    assert shards.read_about(tmp_path) is None and not (tmp_path / 'out').exists()
    (tmp_path / 'meta.json').write_text('{"dataset": "of another origin"}')
    assert shards.read_about(tmp_path) is None
    (tmp_path / 'meta.json').write_text('{')
    with pytest.raises(UserError, match='expected JSON in'):
        shards.read_about(tmp_path)
