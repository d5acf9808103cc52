"""LoRA factors in openpi's own checkpoints: recognised, refused with the way on, merged as openpi
computes them.
"""

import json
import os
import pathlib
import re
import subprocess

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sigma_jax import trees
from sigma_jax.convert import checkpoint, source
from sigma_jax.convert.openpi import lora
from sigma_jax.convert.orbax_leaves import LeafReader
from sigma_jax.errors import UserError
from tests import golden
from tests.convert import openpi_factors
from tests.convert.openpi_factors import LLM, factors, matrices
from tests.test_convert_weights import command  # noqa: F401

ATTENTION, FEED_FORWARD = {'feed_forward': False}, {'attention': False}


@pytest.fixture(scope='module')
def weights():
    """{path: array} of the golden pi0.5, as openpi keeps it."""
    return trees.flatten(checkpoint.load(golden.FIXTURE / 'openpi_jax').params)


@pytest.fixture
def openpi(weights, tmp_path):
    """Writes a step of openpi's training: (its folder, its factors)."""

    def make(ranks, nnx=False, base=weights, drop=(), **which):
        made = factors(weights, ranks, **which)
        flat = {path: x for path, x in {**base, **made}.items() if path not in drop}
        named = {f'{path}/value' if nnx else path: x for path, x in flat.items()}
        with ocp.PyTreeCheckpointer() as writer:
            writer.save((tmp_path / 'step/params').absolute(), {'params': trees.unflatten(named)})
        return tmp_path / 'step', made

    return make


def merged(folder, out, alpha=None, rslora=False):
    """(weights, record) of a conversion with the factors merged in."""
    opened = source.open_source(folder, lora.Rule(alpha, rslora))
    record = checkpoint.convert(opened, out, 'jax', 'float32', opened.factors.merge)
    return trees.flatten(checkpoint.load(out).params), record


def factored(path, x, w, a, b, scale):
    """One layer's matrix applied to `x` with its factors, by the equations of openpi's Einsum and
    FeedForward.
    """
    if 'attn_vec' in path:
        inner = np.einsum('btnh,nhl->btl', x, a)
        return np.einsum('btnh,nhd->btd', x, w) + scale * np.einsum('btl,nld->btd', inner, b)
    if 'q_einsum' in path:
        inner = np.einsum('btd,ndl->btnl', x, a)
        return np.einsum('btd,ndh->btnh', x, w) + scale * np.einsum('btnl,nlh->btnh', inner, b)
    if 'kv_einsum' in path:
        inner = np.einsum('bsd,ckdl->cbskl', x, a)
        return np.einsum('bsd,ckdh->cbskh', x, w) + scale * np.einsum('cbskl,cklh->cbskh', inner, b)
    if 'gating' in path:
        return np.stack([x @ w[n] + (x @ a[n]) @ b[n] for n in (0, 1)])
    return x @ w + (x @ a) @ b


def plain(path, x, w):
    """The same without factors."""
    equation = {
        'attn_vec': 'btnh,nhd->btd',
        'q_ein': 'btd,ndh->btnh',
        'kv_': 'bsd,ckdh->cbskh',
        'gat': 'btd,cdm->cbtm',
    }
    found = [one for name, one in equation.items() if name in path]
    return np.einsum(found[0] if found else 'btm,md->btd', x, w)


def check(got, weights, made, scale, ranks, **which):
    """Every matrix with factors does what openpi's two paths do; every other leaf is the base's,
    bit for bit.
    """
    rng, seen = np.random.default_rng(5), set()
    for suffix in ranks:
        for leaf, stem in matrices(suffix, **which).items():
            seen.add(leaf)
            a, b, w = made[f'{stem}lora_a'], made[f'{stem}lora_b'], weights[leaf]
            inner = w.shape[1:3] if 'attn_vec' in leaf else w.shape[-2:-1]
            x = rng.normal(size=(2, 3, *inner))
            for n in range(len(w)):
                want = factored(leaf, x, w[n].astype(np.float64), a[n], b[n], scale[suffix])
                assert np.abs(plain(leaf, x, got[leaf][n]) - want).max() < 2e-5, leaf
                assert np.abs(plain(leaf, x, w[n]) - want).max() > 0.1, leaf
    assert got.keys() == weights.keys()
    assert all(np.array_equal(got[path], x) for path, x in weights.items() if path not in seen)


KINDS = {
    'both': ({'': 16, '_1': 32}, {}),
    'language': ({'': 16}, {}),
    'expert': ({'_1': 32}, {}),
    'attention': ({'': 16, '_1': 32}, ATTENTION),
    'feed-forward': ({'': 3, '_1': 5}, FEED_FORWARD),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('nnx', [False, True])
def test_factors_are_merged_as_openpi_applies_them(openpi, weights, tmp_path, kind, nnx):
    ranks, which = KINDS[kind]
    folder, made = openpi(ranks, nnx, **which)
    got, record = merged(folder, tmp_path / 'out')
    check(got, weights, made, {'': 1, '_1': 1}, ranks, **which)
    (note,) = (one for one in record['notes'] if 'LoRA' in one)
    assert ('language model' in note) == ('' in ranks) and ('action expert' in note) == (
        '_1' in ranks
    )
    assert ('alpha 16 in attention of the language model (assumed' in note) == (
        kind in ('both', 'language', 'attention')
    )


@pytest.mark.parametrize(
    ('alpha', 'rslora', 'scale'),
    [
        ((8.0,), False, (2, 8 / 6)),
        ((8.0, 3.0), False, (2, 0.5)),
        ((8.0, 3.0), True, (4, 3 / 6**0.5)),
    ],
)
def test_alpha_is_as_told_and_scales_attention_alone(
    openpi, weights, tmp_path, alpha, rslora, scale
):
    folder, made = openpi({'': 4, '_1': 6})
    got, record = merged(folder, tmp_path / 'out', alpha, rslora)
    check(got, weights, made, dict(zip(('', '_1'), scale, strict=True)), ('', '_1'))
    assert any(
        'alpha 8 in attention of the language model (as given' in note for note in record['notes']
    )


@pytest.mark.parametrize(
    ('ranks', 'which', 'said'),
    [
        ({'': 16, '_1': 32}, {}, '(rank 16 in the language model, rank 32 in the action expert)'),
        ({'_1': 7}, {}, '(rank 7 in the action expert)'),
        ({'': 2}, ATTENTION, '(rank 2 in attention of the language model)'),
        (
            {'': 2, '_1': 9},
            FEED_FORWARD,
            'rank 2 in feed-forward of the language model, rank 9 in feed-forward of',
        ),
    ],
)
def test_unasked_they_are_named_and_refused_with_the_flag(
    openpi,
    command,  # noqa: F811
    tmp_path,
    ranks,
    which,
    said,
):
    folder, _ = openpi(ranks, **which)
    for path in (folder, folder / 'params'):
        status, printed = command(f'--checkpoint={path}', f'--out={tmp_path / "out"}')
        assert status == 2 and 'LoRA factors of openpi (rank' in printed and said in printed
        assert 'convert_weights.py --merge_lora' in printed and len(printed) < 400
        known = which == FEED_FORWARD or all(
            {'': 16, '_1': 32}[suffix] == rank for suffix, rank in ranks.items()
        )
        assert ('--lora_alpha=ALPHA' in printed) != known
    with pytest.raises(UserError, match='--merge_lora'):
        checkpoint.load(folder)
    assert not (tmp_path / 'out').exists()


def test_the_command_merges_in_float32_and_any_layout(
    openpi,
    command,  # noqa: F811
    weights,
    tmp_path,
):
    folder, made = openpi({'': 4, '_1': 4})
    arguments = (f'--checkpoint={folder}', f'--out={tmp_path / "out"}', '--merge_lora')
    status, printed = command(*arguments)
    assert (
        status == 2
        and 'expected --lora_alpha for LoRA factors' in printed
        and 'got none' in printed
    )
    status, printed = command(*arguments, '--lora_alpha=6', '--dtype=bfloat16')
    assert status == 2 and 'expected --dtype=float32 with --merge_lora, got bfloat16' in printed
    status, printed = command(*arguments, '--lora_alpha=6,2', '--layout=lerobot')
    assert status == 0 and 'are merged in: alpha 6 in attention' in printed
    check(
        trees.flatten(checkpoint.load(tmp_path / 'out').params),
        weights,
        made,
        {'': 1.5, '_1': 0.5},
        ('', '_1'),
    )


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--merge_lora', '--lora_alpha=much'], "as two like 16,32, got 'much'"),
        (['--merge_lora', '--lora_alpha=0'], 'one number above 0'),
        (['--merge_lora', '--lora_alpha=1,2,3'], 'got 1,2,3'),
        (['--merge_lora', '--lora_alpha=nan'], 'got nan'),
        (['--merge_lora'], 'expected LoRA factors of openpi in'),
        (['--lora_alpha=3'], 'expected --lora_alpha with --merge_lora'),
        (['--rslora'], 'expected --rslora with --merge_lora'),
    ],
)
def test_what_cannot_be_given(command, tmp_path, flags, message):  # noqa: F811
    for name in ('openpi_jax', 'lerobot.safetensors'):
        status, printed = command(
            f'--checkpoint={golden.FIXTURE / name}', f'--out={tmp_path / "out"}', *flags
        )
        assert status == 2 and message in printed and not (tmp_path / 'out').exists()


def test_a_frozen_base_in_bfloat16_is_merged_in_float32(openpi, weights, tmp_path):
    """openpi keeps what it does not train in bfloat16, and the factors in float32."""
    half = {
        path: x.astype(ml_dtypes.bfloat16) if path.startswith(LLM) and '_1/' not in path else x
        for path, x in weights.items()
    }
    folder, made = openpi({'': 16}, base=half)
    got, _ = merged(folder, tmp_path / 'out')
    assert {x.dtype for x in got.values()} == {np.dtype(np.float32)}
    check(got, {path: x.astype(np.float32) for path, x in half.items()}, made, {'': 1}, ('',))


def test_factors_that_do_not_fit_are_named(openpi, weights, tmp_path):
    place = f'{LLM}layers/attn/q_einsum/'
    folder, _ = openpi({'': 4}, drop=(f'{place}lora_b',))
    with pytest.raises(
        UserError, match='expected both LoRA factors of .*q_einsum/w .* got lora_a alone'
    ):
        source.open_source(folder)
    shapes = {path: x.shape for path, x in weights.items()} | {f'{place}lora_a': (3, 8, 64, 4)}
    for wrong in ((3, 8, 5, 16), (3, 8, 16, 4), (4, 16)):
        given = shapes | {f'{place}lora_b': wrong}
        _, pairs = lora.split(given)
        got = re.escape(f'as openpi shapes them, got (3, 8, 64, 4) and {wrong}; copy it again')
        with pytest.raises(UserError, match=rf'factors of .*q_einsum/w .*{got}'):
            lora.open_factors(given, pairs, lambda path: None, lora.Rule(), 'x')


def test_every_leaf_is_read_once(openpi, tmp_path, monkeypatch):
    """A stack of layers has up to 4.8 GB: slices and their factors take turns without reading it
    again.
    """
    folder, made = openpi({'': 16, '_1': 32})
    read, fetched = LeafReader._fetch, []
    monkeypatch.setattr(
        LeafReader,
        '_fetch',
        lambda self, path, store: fetched.append(path) or read(self, path, store),
    )
    opened = source.open_source(folder, lora.Rule())
    checkpoint.convert(opened, tmp_path / 'out', 'lerobot', 'float32', opened.factors.merge)
    assert len(fetched) == len(set(fetched)) == len(opened.shapes) + len(made)


@pytest.mark.reference
@pytest.mark.parametrize('rslora', [False, True])
@pytest.mark.parametrize('ranks', [(4, 6), (16, None), (None, 32)])
def test_openpi_computes_the_same_with_factors_and_with_merged_weights(
    openpi, weights, tmp_path, ranks, rslora
):
    """openpi's own Gemmas, with its LoRA modules and without."""
    present = {suffix: rank for suffix, rank in zip(('', '_1'), ranks, strict=True) if rank}
    folder, made = openpi(present)
    got, _ = merged(folder, tmp_path / 'out', (7.0, 3.0), rslora)
    config, rng = json.loads((golden.FIXTURE / 'config.json').read_text()), np.random.default_rng(3)
    widths = [config[name]['width'] for name in ('vlm', 'action_expert')]
    given = {
        f'x{n}': rng.normal(size=(2, 5 + n, width)).astype(np.float32)
        for n, width in enumerate(widths)
    }
    given['condition'] = rng.normal(size=(2, widths[1])).astype(np.float32)
    for kind, tree in (('base', weights), ('lora', made), ('merged', got)):
        given |= {
            f'{kind}:{p.removeprefix(LLM)}': np.asarray(x)
            for p, x in tree.items()
            if p.startswith(LLM)
        }
    np.savez(tmp_path / 'in.npz', **given)
    (tmp_path / 'in.json').write_text(
        json.dumps(config | {'ranks': ranks, 'alphas': (7.0, 3.0), 'rslora': rslora})
    )
    script = pathlib.Path(openpi_factors.__file__)
    run = [
        os.environ['REFERENCE_OPENPI'],
        str(script),
        str(tmp_path / 'in.npz'),
        str(tmp_path / 'out.npz'),
    ]
    subprocess.run(run, check=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''})
    out = np.load(tmp_path / 'out.npz')
    for n in (0, 1):
        assert np.abs(out[f'factored{n}'] - out[f'merged{n}']).max() < 2e-4
        assert np.abs(out[f'factored{n}'] - out[f'base{n}']).max() > 0.1
