"""Files and folders appear whole or not at all."""

import os

import pytest

from sigma_jax.errors import UserError
from sigma_jax.files import atomic_folder, atomic_write, replaced_folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_only_when_the_block_ends_well(tmp_path):
    out = tmp_path / 'new' / 'out'
    with atomic_folder(out) as part:
        (part / 'file').write_text('whole')
        assert not out.exists()
    assert (out / 'file').read_text() == 'whole' and names(out.parent) == ['out']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / 'out') as part:
        (part / 'file').write_text('half')
        raise error
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_swept_away(tmp_path):
    (tmp_path / '.out.part').mkdir()
    (tmp_path / '.out.part' / 'stale').write_text('')
    with atomic_folder(tmp_path / 'out') as part:
        (part / 'file').write_text('')
    assert names(tmp_path / 'out') == ['file']


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / 'out').mkdir()
    with (
        pytest.raises(UserError, match='expected .*out not to exist yet'),
        atomic_folder(tmp_path / 'out'),
    ):
        raise AssertionError('the block must not run')
    assert names(tmp_path) == ['out']


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    atomic_write(file, 'old')
    atomic_write(file, b'\x00newer')
    assert file.read_bytes() == b'\x00newer' and names(tmp_path) == ['file']

    def full_disk(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match='No space left'):
        atomic_write(file, 'newest')
    assert file.read_bytes() == b'\x00newer' and names(tmp_path) == ['file']


def fill(folder, text):
    folder.mkdir()
    (folder / 'file').write_text(text)


@pytest.mark.parametrize('before', [False, True])
def test_a_folder_is_replaced_only_when_the_block_ends_well(tmp_path, before):
    out = tmp_path / 'out'
    if before:
        fill(out, 'old')
    with pytest.raises(RuntimeError), replaced_folder(out) as new:
        fill(new, 'half')
        raise RuntimeError
    assert names(tmp_path) == (['out'] if before else [])
    with replaced_folder(out) as new:
        fill(new, 'new')
        assert not before or (out / 'file').read_text() == 'old'
    assert names(tmp_path) == ['out'] and (out / 'file').read_text() == 'new'


def test_a_replacement_killed_in_its_midst_gives_the_old_folder_back(tmp_path):
    fill(tmp_path / '.out.old', 'old')
    fill(tmp_path / '.out.new', 'half')
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / 'out'):
        raise RuntimeError
    assert names(tmp_path) == ['out'] and (tmp_path / 'out' / 'file').read_text() == 'old'
