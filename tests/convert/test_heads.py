"""Sigma's heads as one file: bitwise back, with their settings, or refused with a sentence."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sigma_jax import __version__, trees
from sigma_jax.convert import heads
from sigma_jax.errors import UserError
from sigma_jax.objectives.sigma import init_sigma
from sigma_jax.sigma.model import SigmaConfig
from tests import small_sigma

CONFIG = {'d_model': 64, 'state_dim': 3, 'action_dim': 3}


@pytest.fixture
def file(tmp_path):
    """Heads with a scalar, a transposed view and half precision among them."""
    rng = np.random.default_rng(0)
    flat = {
        'vision/theta_t': np.array(0.5, np.float32),
        'language/w': rng.standard_normal((3, 2)).T,
    }
    tree = trees.unflatten(flat | {'action/b': rng.standard_normal(4).astype(ml_dtypes.bfloat16)})
    return heads.save_heads(tree, tmp_path / 'new' / 'sigma.safetensors', CONFIG), tree


def test_sigmas_own_heads_come_back_bitwise(tmp_path):
    start = jax.eval_shape(
        lambda f, b: init_sigma(jax.random.key(0), small_sigma.sigma_objective(), f, b),
        *(small_sigma.frozen(), small_sigma.make_batch()),
    )
    tree = jax.tree.map(
        lambda x: np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype), start
    )
    out = heads.save_heads(tree, tmp_path / 'sigma.safetensors', CONFIG)
    found, config = heads.load_heads(out, expected=tree)
    assert trees.digest(found) == trees.digest(tree) and SigmaConfig(**config).state_dim == 3
    assert set(load_file(out)) == set(trees.flatten(tree))


def test_every_kind_of_leaf_comes_back_with_settings_and_version(file):
    out, tree = file
    found, config = heads.load_heads(out)
    assert trees.digest(found) == trees.digest(tree) and config == CONFIG
    assert (
        found['vision']['theta_t'].shape == () and found['action']['b'].dtype == ml_dtypes.bfloat16
    )
    assert np.array_equal(found['language']['w'], tree['language']['w'])
    with safe_open(out, 'np') as opened:
        assert opened.metadata()['sigma_jax'] == __version__


def test_nothing_is_overwritten_and_names_are_checked(file):
    for name in (file[0], file[0].with_suffix('.bin')):
        with pytest.raises(UserError, match='expected the name of a new .safetensors file'):
            heads.save_heads(file[1], name, CONFIG)
    assert len(list(file[0].parent.iterdir())) == 1


@pytest.mark.parametrize(
    ('metadata', 'message'),
    [
        ({'format': 'pt'}, "expected Sigma's heads in .*, got safetensors of format 'pt'"),
        (
            {'format_version': '2', 'sigma_jax': '9.9'},
            "expected version 1 .*, got '2', written by sigma_jax 9.9",
        ),
        ({'config': '{'}, 'expected the settings of the heads'),
        ({'digest': '0'}, 'expected in .* the heads that were written, got others'),
    ],
)
def test_other_files_are_refused(file, metadata, message):
    with safe_open(file[0], 'np') as opened:
        old = opened.metadata()
    save_file(load_file(file[0]), file[0], metadata=old | metadata)
    with pytest.raises(UserError, match=message):
        heads.load_heads(file[0])


def test_damage_is_refused(file, tmp_path):
    out, tree = file

    def refused(message, where=out, expected=None):
        with pytest.raises(UserError, match=message):
            heads.load_heads(where, expected)

    refused('expected a safetensors file at .*, got no such file', tmp_path / 'nowhere.safetensors')
    (tmp_path / 'heads.bin').write_bytes(b'')
    refused('pickled weights can run code', tmp_path / 'heads.bin')
    flat = trees.flatten(tree)
    other = trees.unflatten(flat | {'vision/theta_t': np.zeros(2)})
    refused(r'vision/theta_t: expected shape \(2,\), got \(\)', expected=other)
    whole = bytearray(out.read_bytes())
    whole[-3] ^= 1
    out.write_bytes(whole)
    refused('the heads that were written, got others')
    out.write_bytes(whole[:-1])
    refused('expected a whole safetensors file')
    metadata = {
        'format': heads.FORMAT,
        'format_version': '1',
        'digest': '',
        'config': json.dumps(CONFIG),
    }
    save_file({'a': np.zeros(1), 'a/b': np.zeros(1)}, out, metadata=metadata)
    refused('the heads that were written, got others')
