"""Damaged checkpoints: each is refused in a sentence that names the tensor; none crashes, none
loads wrongly.

A seed decides file, tensor and damage; 20 seeds run with the suite, 200 with `pytest -m slow`.
"""

import dataclasses
import json
import pathlib
import re
import shutil
import traceback

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax import trees
from sigma_jax.backbones import pi05, pi05_names
from sigma_jax.convert import checkpoint, source
from sigma_jax.convert.slices import slices_of
from sigma_jax.errors import UserError
from tests import golden

DTYPES = (ml_dtypes.bfloat16, np.float16, np.float64, np.int32, np.int8)
UNREAD = (pi05_names.EXPERT_HEAD, pi05_names.LM_HEAD)


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A folder, and what the message must name: one of `names`."""

    folder: pathlib.Path
    kind: str
    names: tuple[str, ...]


@pytest.fixture(scope='module')
def undamaged(tmp_path_factory):
    """One converted folder of each layout, digests beside the weights."""
    base = tmp_path_factory.mktemp('undamaged')
    loaded = checkpoint.load(golden.FIXTURE / 'lerobot.safetensors')
    return {
        x: checkpoint.save(loaded, base, base / x, x) for x in ('jax', 'lerobot', 'openpi-pytorch')
    }


def leaf_of(name):
    """Our path of a tensor."""
    shapes = {
        path: leaf.shape
        for path, leaf in trees.flatten(pi05.abstract_params(golden.config())).items()
    }
    owners = {part.name: part.path for part in slices_of(shapes, pi05_names.TABLE)} | {
        pi05_names.LM_HEAD: 'PaliGemma/llm/embedder/input_embedding'
    }
    return owners[pi05_names.TABLE.canonical(name)]


def change_tensors(tensors, name, kind, rng):
    """Applies one kind of damage in place; returns the names that the message may give."""
    array = tensors[name]
    if kind == 'removed':
        del tensors[name]
    elif kind == 'added':
        name = f'{name}.{rng.integers(100)}'
        tensors[name] = array
    elif kind == 'renamed':
        del tensors[name]
        tensors[f'{name}x'] = array
    elif kind == 'transposed':
        tensors[name] = (
            np.ascontiguousarray(array.T) if array.T.shape != array.shape else array[:-1]
        )
    elif kind == 'dtype':
        tensors[name] = array.astype(DTYPES[rng.integers(len(DTYPES))])
    elif kind == 'values':
        tensors[name] = array.copy()
        tensors[name].reshape(-1).view(np.uint8)[rng.integers(array.nbytes)] ^= 1 << rng.integers(8)
    return name


def damage(seed, undamaged, folder):
    """A copy of one of the folders, damaged as `seed` says."""
    rng = np.random.default_rng(seed)
    layout = str(rng.choice(list(undamaged)))
    kind = str(
        rng.choice(['truncated', 'removed', 'added', 'renamed', 'transposed', 'dtype', 'values'])
    )
    shutil.copytree(undamaged[layout], folder)
    if kind != 'values' and rng.random() < 0.5:
        (folder / source.RECORD).unlink()  # most checkpoints have no digests
    if layout == 'jax':
        return damage_orbax(folder, kind, rng)
    file = folder / 'model.safetensors'
    if kind == 'truncated':
        file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])
        return Damaged(folder, kind, ('no tensor can be found', 'without .*(weight|bias)'))
    tensors = load_file(file)
    unread = [
        name
        for name in tensors
        if pi05_names.TABLE.canonical(name) in UNREAD and (len(tensors) == 113 or 'expert' in name)
    ]
    name = str(rng.choice([name for name in tensors if name not in unread]))
    changed = change_tensors(tensors, name, kind, rng)
    save_file(tensors, file)
    names = (pi05_names.TABLE.canonical(changed), leaf_of(name) if kind == 'values' else changed)
    if pi05_names.LM_HEAD in names:
        names += (pi05_names.EMBED,)  # it stands for the table where that is absent
    return Damaged(folder, kind, tuple(map(re.escape, names)))


def damage_orbax(folder, kind, rng):
    """Damage to a chunk's file, or to the tree that Orbax writes."""
    if kind == 'truncated':
        chunks = sorted(
            x
            for x in (folder / 'params').rglob('*')
            if x.is_file() and not x.name.startswith(('.', '_'))
        )
        chunk = chunks[rng.integers(len(chunks))]
        if chunk.name == 'commit_success.txt':
            chunk = chunks[0]
        chunk.write_bytes(chunk.read_bytes()[: rng.integers(chunk.stat().st_size)])
        return Damaged(
            folder, kind, (re.escape(chunk.parent.name.removeprefix('params.').replace('.', '/')),)
        )
    with ocp.PyTreeCheckpointer() as reader:
        flat = trees.flatten(reader.restore((folder / 'params').absolute())['params'])
    name = str(rng.choice(sorted(flat)))
    changed = change_tensors(flat, name, kind, rng)
    shutil.rmtree(folder / 'params')
    with ocp.PyTreeCheckpointer() as writer:
        writer.save((folder / 'params').absolute(), {'params': trees.unflatten(flat)})
    return Damaged(folder, kind, (re.escape(changed),))


def refused(seed, undamaged, tmp_path):
    """The message, after checking that it is one line that names the tensor."""
    damaged = damage(seed, undamaged, tmp_path / f'damaged{seed}')
    out = tmp_path / f'out{seed}'
    for attempt in (
        lambda: checkpoint.load(damaged.folder),
        lambda: checkpoint.convert(
            source.open_source(damaged.folder), out, ('jax', 'lerobot')[seed % 2]
        ),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        message = str(caught.value)
        assert '\n' not in message
        assert any(re.search(name, message) for name in damaged.names), (seed, damaged, message)
    assert not list(tmp_path.glob('*out*'))
    shutil.rmtree(damaged.folder)
    return damaged.kind


@pytest.mark.parametrize('seed', range(20))
def test_damage_is_refused(seed, undamaged, tmp_path):
    assert refused(seed, undamaged, tmp_path)


@pytest.mark.slow
def test_two_hundred_damaged_checkpoints(undamaged, tmp_path):
    failures, kinds = [], []
    for seed in range(1000, 1200):
        try:
            kinds.append(refused(seed, undamaged, tmp_path))
        except BaseException:
            failures.append((seed, traceback.format_exc(limit=-3)))
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))})
    assert not failures, '\n'.join(f'{seed}: {text}' for seed, text in failures)


def test_a_lost_chunk_is_not_read_as_zeros(undamaged, tmp_path):
    shutil.copytree(undamaged['jax'], tmp_path / 'jax')
    (tmp_path / 'jax' / source.RECORD).unlink()
    (tmp_path / 'jax/params/params.time_mlp_in.bias/0').unlink()
    with pytest.raises(UserError, match='time_mlp_in/bias.*copy it again'):
        checkpoint.load(tmp_path / 'jax')


def test_a_record_that_is_no_record(undamaged, tmp_path):
    shutil.copytree(undamaged['lerobot'], tmp_path / 'lerobot')
    for text in ('{', '[]', json.dumps({'leaves': 3})):
        (tmp_path / 'lerobot' / source.RECORD).write_text(text)
        with pytest.raises(UserError, match='expected the record of a conversion in .*source.json'):
            checkpoint.load(tmp_path / 'lerobot')
