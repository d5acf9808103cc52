"""Adapters of the PEFT library: names, shapes and order of rows, peft's own files and LeRobot's
numbers with them.
"""

import dataclasses
import functools
import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax import trees
from sigma_jax.backbones import pi05, pi05_names
from sigma_jax.convert.merge import merge_slice
from sigma_jax.convert.peft import adapter as peft
from sigma_jax.errors import UserError
from sigma_jax.nn import lora
from tests import golden, quick
from tests.merged import merge

STORED = golden.DATA / 'peft_tiny'
PATTERNS = (
    '.*einsum(_1)?/w',
    '.*(gating_einsum|linear)',
    '.*/img/.*/(query|key|value|out|Dense_.)/kernel',
    '.*head/kernel',
)
CONFIG = lora.LoraConfig(PATTERNS, rank=3, alpha=8.0, dropout=0.1)
EXPERT_Q = 'PaliGemma/llm/layers/attn/q_einsum_1/w'
Q_NAME = 'paligemma_with_expert.gemma_expert.model.layers.{n}.self_attn.q_proj'


@functools.cache
def abstract():
    """Shapes of the golden model."""
    return pi05.abstract_params(golden.config())


def random_factors(config):
    """Factors of the golden model, none zero."""
    start = lora.init_factors(jax.random.key(0), abstract(), pi05.LAYOUTS, config)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), start)


@pytest.fixture(scope='module')
def factors():
    return random_factors(CONFIG)


@pytest.fixture(scope='module')
def torch_names():
    """Shape of every matrix in LeRobot's file, by module."""
    tensors = load_file(golden.FIXTURE / 'lerobot.safetensors')
    return {
        name.removesuffix('.weight'): x.shape
        for name, x in tensors.items()
        if name.endswith('.weight')
    }


def same(one, other):
    return trees.digest(one) == trees.digest(other)


def edit(source, out, settings=None, tensors=lambda x: x):
    """A copy of an adapter with other settings, and its tensors mapped."""
    shutil.copytree(source, out)
    file = out / 'adapter_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | (settings or {})))
    save_file(
        tensors(load_file(source / 'adapter_model.safetensors')), out / 'adapter_model.safetensors'
    )
    return out


def test_pairs_lie_beside_lerobots_matrices(factors, torch_names, tmp_path):
    out = peft.save(factors, CONFIG, abstract(), tmp_path / 'adapter', base='base')
    adapter = load_file(out / 'adapter_model.safetensors')
    settings = json.loads((out / 'adapter_config.json').read_text())
    modules = {
        re.fullmatch(r'base_model\.model\.(.*)\.lora_[AB]\.weight', key)[1] for key in adapter
    }
    assert {
        name for name in torch_names if re.fullmatch(settings['target_modules'], name)
    } == modules
    assert len(modules) == 2 * 3 * 7 + 2 * 6 + 1 and len(adapter) == 2 * len(modules)
    for name in modules:
        rows, columns = torch_names[name]
        assert adapter[f'base_model.model.{name}.lora_A.weight'].shape == (3, columns)
        assert adapter[f'base_model.model.{name}.lora_B.weight'].shape == (rows, 3)
    assert (settings['r'], settings['lora_alpha'], settings['bias'], settings['peft_type']) == (
        3,
        8,
        'none',
        'LORA',
    )
    assert settings['base_model_name_or_path'] == 'base' and settings['task_type'] is None


def test_rows_and_columns_are_in_pytorchs_order(factors, golden_params, tmp_path):
    """W' = W + alpha / r B A holds in PyTorch's layout, matrix by matrix, for the weights that
    `merge` gives.
    """
    peft.save(factors, CONFIG, abstract(), tmp_path / 'adapter', layout='openpi-pytorch')
    adapter = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
    base = trees.flatten(golden_params)
    merged = trees.flatten(merge(golden_params, factors, pi05.LAYOUTS, CONFIG.alpha))
    seen = 0
    for rule in pi05_names.RULES:
        for index, name in rule.names(base[rule.path].shape[0]):
            key = f'base_model.model.{name.removesuffix(".weight")}.lora_'
            old, new = (
                rule.tensor_map.to_torch(np.asarray(tree[rule.path][index]))
                for tree in (base, merged)
            )
            delta = 0.0
            if f'{key}A.weight' in adapter:
                delta, seen = (
                    8 / 3 * adapter[f'{key}B.weight'] @ adapter[f'{key}A.weight'],
                    seen + 1,
                )
            np.testing.assert_allclose(new, old + delta, rtol=0, atol=1e-5)
    assert 2 * seen == len(adapter)


@pytest.mark.parametrize('layout', ['lerobot', 'openpi-pytorch'])
@pytest.mark.parametrize('vision_model', [True, False])
def test_there_and_back_bitwise(factors, tmp_path, layout, vision_model):
    out = peft.save(
        factors, CONFIG, abstract(), tmp_path / 'adapter', layout=layout, vision_model=vision_model
    )
    back = peft.load(out, abstract())
    assert same(back.factors, factors) and back.notes == ()
    assert dataclasses.replace(back.config, patterns=PATTERNS) == CONFIG
    assert trees.select(abstract(), back.config.patterns) == trees.select(abstract(), PATTERNS)


def test_half_precision_stays_if_asked(factors, tmp_path):
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), factors)
    stored = peft.save(half, CONFIG, abstract(), tmp_path / 'stored', dtype='stored')
    assert same(peft.load(stored, abstract()).factors, half)
    wide = peft.load(
        peft.save(half, CONFIG, golden.config(), tmp_path / 'wide'), golden.config()
    ).factors
    assert same(wide, jax.tree.map(lambda x: x.astype(np.float32), half))


@pytest.mark.parametrize('name', ['attention', 'everything'])
def test_lerobots_numbers_with_pefts_adapter(golden_params, name):
    adapter, want = peft.load(STORED / name, abstract()), np.load(STORED / 'outputs.npz')
    assert adapter.config.rank == 4 and adapter.config.alpha == 10 and adapter.notes == ()
    config = dataclasses.replace(golden.config(), lora=adapter.config)
    model, i = pi05.BoundPi05(config, golden_params, adapter.factors), golden.inputs()
    time = i['time'][:, None, None]
    x_t = time * i['noise'] + (1 - time) * i['actions']
    velocity = quick.jit(lambda: model.velocity(golden.observation(), x_t, i['time']))()
    sampled = quick.jit(
        lambda: model._apply('sample_actions', i['sample_noise'], golden.observation())
    )()
    np.testing.assert_allclose(velocity, want[f'{name}_velocity_float32_time'], rtol=0, atol=1e-5)
    # LeRobot's float64 time
    np.testing.assert_allclose(velocity, want[f'{name}_velocity'], rtol=0, atol=2e-5)
    np.testing.assert_allclose(sampled, want[f'{name}_sampled_actions'], rtol=0, atol=1e-5)
    assert np.abs(want[f'{name}_velocity'] - want['base_velocity']).max() > 0.5


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('base_model.model.', ''),
        ('base_model.model.model.', ''),
        ('vision_tower.vision_model.', 'vision_tower.'),
        ('.weight', '.default.weight'),
    ],
)
def test_spellings_of_names(tmp_path, old, new):
    out = edit(
        STORED / 'everything',
        tmp_path / 'x',
        tensors=lambda x: {k.replace(old, new): v for k, v in x.items()},
    )
    want = peft.load(STORED / 'everything', abstract())
    assert same(peft.load(out, abstract()).factors, want.factors)


def test_matrices_left_out_get_zeros(tmp_path):
    """LeRobot's default adapts q and v alone; peft can leave out layers."""

    def keep(tensors):
        return {
            k: x
            for k, x in tensors.items()
            if re.search(r'gemma_expert.*layers\.[02]\..*[qv]_proj', k)
        }

    settings = {
        'target_modules': ['gemma_expert.model.layers.0.self_attn.q_proj', 'q_proj', 'v_proj']
    }
    layers = {
        'layers_to_transform': [0, 2],
        'exclude_modules': r'.*(language_model|vision_tower).*',
    }
    out = edit(STORED / 'attention', tmp_path / 'x', settings | layers, keep)
    found, whole = (
        trees.flatten(peft.load(x, abstract()).factors) for x in (out, STORED / 'attention')
    )
    kv = 'PaliGemma/llm/layers/attn/kv_einsum_1/w'
    assert set(found) == {f'{p}/{half}' for p in (EXPERT_Q, kv) for half in 'ab'}
    for path, x in found.items():
        # layers 0 and 2; of k and v, v
        used = (slice(None, None, 2), 1) if 'kv_' in path else slice(None, None, 2)
        assert not x[1].any() and np.array_equal(x[used], whole[path][used]) and x[used].any()
    assert not found[f'{kv}/b'][:, 0].any()
    notes = ' '.join(peft.load(out, abstract()).notes)
    assert '1 matrices of PaliGemma/llm/layers/attn/q_einsum_1/w are not in the adapter' in notes
    assert f'4 matrices of {kv}' in notes and 'layers.0.self_attn.k_proj' in notes


def test_strengths_that_differ_are_kept(tmp_path):
    """Every matrix is scaled as peft scales it: by alpha / sqrt(r), with its own alpha and r."""
    narrow = Q_NAME.format(n=1)

    def cut(tensors):
        key = f'base_model.model.model.{narrow}.lora_'
        a, b = tensors[f'{key}A.weight'][:2], tensors[f'{key}B.weight'][:, :2].copy()
        return tensors | {f'{key}A.weight': a, f'{key}B.weight': b}

    settings = {
        'use_rslora': True,
        'rank_pattern': {narrow: 2},
        'alpha_pattern': {r'layers\.2\.self_attn\.q_proj': 5},
    }
    out = edit(STORED / 'attention', tmp_path / 'x', settings, cut)
    found = peft.load(out, abstract())
    assert found.config.rank == 4 and 'multiplied into their B' in found.notes[0]
    tensors, leaves = load_file(out / 'adapter_model.safetensors'), trees.flatten(found.factors)
    for n, scale in enumerate([10 / 4**0.5, 10 / 2**0.5, 5 / 4**0.5]):
        key = f'base_model.model.model.{Q_NAME.format(n=n)}.lora_'
        want = scale * tensors[f'{key}B.weight'] @ tensors[f'{key}A.weight']
        got = found.config.alpha / 4 * leaves[f'{EXPERT_Q}/b'][n] @ leaves[f'{EXPERT_Q}/a'][n]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    rslora = peft.load(edit(STORED / 'attention', tmp_path / 'y', {'use_rslora': True}), abstract())
    assert rslora.config.alpha == 20 and same(
        rslora.factors, peft.load(STORED / 'attention', abstract()).factors
    )


def test_one_slice_merged_is_the_merged_tree(factors, golden_params):
    want = trees.flatten(merge(golden_params, factors, pi05.LAYOUTS, CONFIG.alpha))
    for path, leaf in trees.flatten(golden_params).items():
        x = np.asarray(leaf)
        for depth in (0, 1, 2) if 'einsum' in path else (0, 1):
            for index in (
                np.ndindex(x.shape[:depth]) if path.startswith('PaliGemma/llm/layers') else [()]
            ):
                # q and o have no stacked matrices
                depth_fits = depth < 2 or 'kv_' in path or 'gating' in path
                if depth_fits:
                    part = merge_slice(path, index, x[index], factors, pi05.LAYOUTS, CONFIG.alpha)
                    np.testing.assert_allclose(part, want[path][index], rtol=0, atol=1e-5)
    untouched = np.zeros(3, ml_dtypes.bfloat16)
    assert merge_slice('time_mlp_in/bias', (), untouched, factors, pi05.LAYOUTS, 8.0) is untouched
    half = np.zeros((64, 40), ml_dtypes.bfloat16)
    path = 'PaliGemma/img/head/kernel'
    assert merge_slice(path, (), half.T, factors, pi05.LAYOUTS, 8.0).dtype == np.float32


def projections(tensors):
    """An adapter of LeRobot's default kind: with an input projection that has no side path here."""
    key, rng = 'base_model.model.model.action_in_proj.lora_', np.random.default_rng(0)
    sizes = {'A': (4, 8), 'B': (48, 4)}
    return tensors | {
        f'{key}{h}.weight': rng.standard_normal(s).astype(np.float32) for h, s in sizes.items()
    }


def test_matrices_without_a_side_path_can_be_merged(golden_params, tmp_path):
    settings = {
        'target_modules': r'.*(language_model|gemma_expert).*\.self_attn\.[qkvo]_proj'
        r'|model\.action_in_proj'
    }
    out = edit(STORED / 'attention', tmp_path / 'x', settings, projections)
    with pytest.raises(
        UserError, match='action_in_proj.lora_A.weight: this matrix has no side path here; merge'
    ):
        peft.load(out, abstract())
    found = peft.load(out, abstract(), peft.MERGE_LAYOUTS)
    merged = merge(golden_params, found.factors, peft.MERGE_LAYOUTS, found.config.alpha)
    tensors, key = (
        load_file(out / 'adapter_model.safetensors'),
        'base_model.model.model.action_in_proj.lora_',
    )
    want = (
        golden_params['action_in_proj']['kernel'].T
        + 2.5 * tensors[f'{key}B.weight'] @ tensors[f'{key}A.weight']
    )
    np.testing.assert_allclose(merged['action_in_proj']['kernel'], want.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'use_dora': True}, 'expected a plain LoRA adapter in .*, got use_dora=True'),
        ({'bias': 'all'}, "got bias='all'"),
        ({'modules_to_save': ['action_in_proj']}, 'got modules_to_save='),
        ({'init_lora_weights': 'pissa_niter_4'}, "got init_lora_weights='pissa_niter_4'"),
        ({'peft_type': 'IA3'}, "got peft_type='IA3'"),
        ({'r': 0}, 'expected ranks of at least 1'),
        ({'r': 'x'}, 'expected the settings of a LoRA adapter'),
        ({'target_modules': '('}, 'expected the settings of a LoRA adapter'),
        ({'r': 5}, r'q_proj.lora_A.weight: expected shape \(5, 64\), got \(4, 64\)'),
        (
            {'target_modules': ['q_proj', 'k_proj', 'v_proj']},
            'o_proj.lora_A.weight: target_modules does not select it',
        ),
        (
            {'target_modules': '.*_proj'},
            r'missing .*vision_model.*q_proj, which target_modules '
            r'selects',
        ),
    ],
)
def test_settings_that_are_no_plain_lora_of_these_tensors(tmp_path, settings, message):
    out = edit(STORED / 'attention', tmp_path / 'x', settings)
    with pytest.raises(UserError, match=message):
        peft.load(out, abstract())


KEY = f'base_model.model.model.{Q_NAME.format(n=1)}.lora_A.weight'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda x: x.pop(KEY),
            r'got 1 differences: missing '
            r'.*layers.1.self_attn.q_proj.lora_A.weight',
        ),
        (
            lambda x: [x.pop(k) for k in list(x) if 'layers.1.' in k],
            r'got 8 differences.*1.self_attn.o_proj, which',
        ),
        (
            lambda x: x.update({KEY: x[KEY].T.copy()}),
            r'q_proj.lora_A.weight: expected shape \(4, '
            r'48\), got \(48, 4\)',
        ),
        (
            lambda x: x.update({KEY: x[KEY].astype(np.float16)}),
            'expected dtype float32 .*, got float16',
        ),
        (
            lambda x: x.update({KEY.replace('.w', '.other.w'): x.pop(KEY)}),
            r'several adapters '
            r"\['None', 'other'\]",
        ),
        (
            lambda x: x.update({KEY.removeprefix('base_model.model.'): x[KEY]}),
            'repeats another spelling',
        ),
        (
            lambda x: x.update({KEY.replace('q_proj', 'r_proj'): x[KEY]}),
            'unexpected .*r_proj.*closest: .*_proj',
        ),
        (
            lambda x: x.update({KEY.replace('lora_A', 'lora_embedding_A'): x[KEY]}),
            'unexpected .*lora_embedding_A',
        ),
        (lambda x: x.clear(), r'got 24 differences'),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    def changed(tensors):
        change(tensors)
        return tensors

    with pytest.raises(UserError, match=message):
        peft.load(edit(STORED / 'attention', tmp_path / 'x', tensors=changed), abstract())


def test_folders_and_factors_that_are_none(factors, tmp_path):
    def refused(message, change):
        shutil.rmtree(tmp_path / 'x', ignore_errors=True)
        out = edit(STORED / 'attention', tmp_path / 'x')
        change(out)
        with pytest.raises(UserError, match=message):
            peft.load(out, abstract())

    weights = 'adapter_model.safetensors'
    refused(
        "got .'adapter_model.bin'.; pickled",
        lambda x: (x / weights).rename(x / 'adapter_model.bin'),
    )
    refused('expected adapter_config.json in', lambda x: (x / 'adapter_config.json').unlink())
    refused(
        'expected the settings of a LoRA adapter',
        lambda x: (x / 'adapter_config.json').write_text('{'),
    )
    for alpha in (None, '8', True):
        refused(
            'expected the settings of a LoRA adapter in .*lora_alpha',
            lambda x, alpha=alpha: (x / 'adapter_config.json').write_text(
                json.dumps(
                    json.loads((x / 'adapter_config.json').read_text()) | {'lora_alpha': alpha}
                )
            ),
        )
    refused(
        'expected a whole safetensors file',
        lambda x: (x / weights).write_bytes((x / weights).read_bytes()[:-1]),
    )
    with pytest.raises(UserError, match="got 'jax' and 'float32'; choose"):
        peft.save(factors, CONFIG, abstract(), tmp_path / 'y', layout='jax')
    with pytest.raises(UserError, match='the LoRA factors: expected the leaves of the model, got '):
        peft.save(factors, dataclasses.replace(CONFIG, rank=4), abstract(), tmp_path / 'y')
    assert not (tmp_path / 'y').exists()
