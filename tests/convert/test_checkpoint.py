"""Checkpoints of all layouts: the same numbers, there and back, and one sentence for each kind of
damage.
"""

import ast
import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax import trees
from sigma_jax.backbones import names as forms
from sigma_jax.backbones import pi05, pi05_names, pi05_sizes
from sigma_jax.convert import checkpoint, orbax_leaves, sizes, source
from sigma_jax.convert.slices import slices_of
from sigma_jax.errors import UserError
from tests import golden

LAYOUTS = {
    'jax': 'openpi_jax',
    'lerobot': 'lerobot.safetensors',
    'openpi-pytorch': 'openpi_pytorch.safetensors',
}
EMBED, LM_HEAD = 'model.' + pi05_names.EMBED, 'model.' + pi05_names.LM_HEAD
UP_PROJECTION = f'model.{pi05_names.EXPERT}layers.1.mlp.up_proj.weight'
ACTION = 'model.action_in_proj.weight'


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    """The three golden files, each with the sizes beside it."""
    folder = tmp_path_factory.mktemp('golden')
    shutil.copytree(golden.FIXTURE / LAYOUTS['jax'], folder, dirs_exist_ok=True)
    shutil.copy(golden.FIXTURE / 'config.json', folder)
    paths = LAYOUTS | {'jax': folder}
    return {layout: checkpoint.load(golden.FIXTURE / path) for layout, path in paths.items()}


@pytest.fixture(scope='module')
def lerobot():
    """All tensors of the LeRobot file."""
    return load_file(golden.FIXTURE / LAYOUTS['lerobot'])


@pytest.fixture
def folder(tmp_path):
    """Writes tensors and the sizes beside them; returns the folder."""

    def write(tensors, name='model.safetensors'):
        save_file(tensors, tmp_path / name)
        (tmp_path / 'sigma_config.json').write_text(json.dumps(sizes.to_json(golden.config())))
        return tmp_path

    return write


def save(loaded, out, layout):
    if layout == 'jax':
        return checkpoint.save(loaded, golden.FIXTURE, out)
    return checkpoint.save(loaded, golden.FIXTURE, out, layout)


def same_sizes(got):
    """Everything but run-time settings is as in the fixture."""
    want = golden.config()
    return dataclasses.replace(got, dtype=want.dtype, lora=want.lora, remat=want.remat) == want


def test_all_layouts_hold_the_same_tree(loaded, golden_params):
    digests = {layout: trees.digest(one.params) for layout, one in loaded.items()}
    assert set(digests.values()) == {trees.digest(golden_params)}
    assert [one.format for one in loaded.values()] == ['openpi-jax', 'lerobot', 'openpi-pytorch']
    assert all(isinstance(x, np.ndarray) for x in trees.flatten(loaded['jax'].params).values())
    notes = ' '.join(loaded['lerobot'].notes)
    assert (
        'gemma_expert.lm_head.weight is unused' in notes and 'lm_head equals embed_tokens' in notes
    )


@pytest.mark.parametrize('layout', LAYOUTS)
def test_sizes_are_inferred(loaded, layout):
    assert same_sizes(loaded[layout].config)


@pytest.mark.parametrize('first', LAYOUTS)
@pytest.mark.parametrize('second', LAYOUTS)
def test_there_and_back_bitwise(loaded, tmp_path, first, second):
    there = checkpoint.load(save(loaded[first], tmp_path / 'there', first))
    back = checkpoint.load(save(there, tmp_path / 'back', second))
    assert trees.digest(back.params) == trees.digest(loaded[first].params)
    assert same_sizes(back.config)


@pytest.mark.parametrize('layout', ['lerobot', 'openpi-pytorch'])
def test_exports_hold_every_tensor_that_the_originals_load_strictly(loaded, tmp_path, layout):
    ours = load_file(save(loaded['jax'], tmp_path / 'out', layout) / 'model.safetensors')
    theirs = load_file(golden.FIXTURE / LAYOUTS[layout])
    assert {key: (x.shape, x.dtype) for key, x in ours.items()} == {
        key: (x.shape, x.dtype) for key, x in theirs.items()
    }
    differ = {
        pi05_names.TABLE.canonical(key)
        for key, x in ours.items()
        if x.tobytes() != theirs[key].tobytes()
    }
    assert differ == {pi05_names.EXPERT_HEAD}


def test_a_stopped_conversion_leaves_nothing(loaded, tmp_path):
    """Also where the stop comes from outside; the rest of a kill is cleared by the next
    conversion.
    """
    opened = source.open_source(golden.FIXTURE / LAYOUTS['lerobot'])
    (tmp_path / '.out.part').mkdir()
    (tmp_path / '.out.part/model.safetensors').write_bytes(b'half')

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    for layout in ('jax', 'lerobot'):
        with pytest.raises(KeyboardInterrupt):
            checkpoint.convert(opened, tmp_path / 'out', layout, progress=stop)
        assert not list(tmp_path.iterdir())
    seen = []
    checkpoint.convert(
        opened, tmp_path / 'out', 'jax', progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] == 4 * 356080 and seen == sorted(seen)


def test_a_stop_waits_for_the_writes_under_way(loaded, tmp_path, monkeypatch):
    """Otherwise they would write into the folder while it is cleared, and some of it would stay."""
    late, write = ThreadPoolExecutor(1), orbax_leaves.LeafWriter.write

    def write_late(self, path, index, part):
        def work():
            time.sleep(0.05)
            if (future := write(self, path, index, part)) is not None:
                future.result()

        return late.submit(work)

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(orbax_leaves.LeafWriter, 'write', write_late)
    opened = source.open_source(golden.FIXTURE / LAYOUTS['lerobot'])
    with pytest.raises(KeyboardInterrupt):
        checkpoint.convert(opened, tmp_path / 'out', 'jax', progress=stop)
    late.shutdown()
    assert not list(tmp_path.iterdir())


def test_large_tables_pass_by_rows(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(
        'sigma_jax.convert.slices.LARGEST_SLICE', 4096
    )  # elements: the table has 512 * 64
    monkeypatch.setattr('sigma_jax.convert.orbax_leaves.LARGEST_CHUNK', 1000)
    shapes = {p: x.shape for p, x in trees.flatten(loaded['jax'].params).items()}
    cut = [part for part in slices_of(shapes, pi05_names.TABLE) if part.rows]
    assert [part.rows.start for part in cut] == list(range(0, 512, 64))
    there = save(loaded['jax'], tmp_path / 'there', 'jax')
    assert (
        len(list((there / 'params/params.PaliGemma.llm.embedder.input_embedding').glob('[0-9]*')))
        == 8
    )
    back = save(checkpoint.load(there), tmp_path / 'back', 'lerobot')
    assert trees.digest(checkpoint.load(back).params) == trees.digest(loaded['jax'].params)
    with ocp.PyTreeCheckpointer() as reader:
        plain = reader.restore((there / 'params').absolute())['params']
    assert trees.digest(plain) == trees.digest(loaded['jax'].params)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dtypes_follow_the_originals(loaded, tmp_path, dtype):
    found = checkpoint.load(
        checkpoint.save(loaded['jax'], golden.FIXTURE, tmp_path / 'out', 'jax', dtype=dtype)
    )
    kinds = {path: x.dtype for path, x in trees.flatten(found.params).items()}
    half = {path for path, kind in kinds.items() if kind == ml_dtypes.bfloat16}
    assert {pi05_names.TABLE.group(path) for path in half} == (
        set(pi05_names.TABLE.half) if dtype == 'bfloat16' else set()
    )
    assert all('norm' not in path and '/img/' not in path for path in half)


def test_a_converted_folder_tells_where_it_came_from(loaded, tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    shutil.copy(golden.DATA.parents[1] / 'assets/pi05_tiny/norm_stats.json', source)
    out = checkpoint.save(loaded['lerobot'], source, tmp_path / 'out')
    record = json.loads((out / 'source.json').read_text())
    assert (
        record['digest'] == trees.digest(loaded['lerobot'].params) and record['format'] == 'lerobot'
    )
    assert record['parameters'] == 356080 and len(record['notes']) > 2
    both = [json.loads((folder / 'norm_stats.json').read_text()) for folder in (source, out)]
    assert both[0] == both[1] and len(both[0]['norm_stats']['state']['q01']) == 6
    with pytest.raises(UserError, match='not to exist yet'):
        checkpoint.save(loaded['lerobot'], source, out)


def read_table(name):
    rows = (
        line.split('\t') for line in (golden.DATA / 'full_size' / name).read_text().splitlines()
    )
    return {row[0]: ast.literal_eval(row[1]) for row in rows}


@pytest.mark.parametrize(
    'name', ['lerobot_keys.tsv', 'lerobot_keys_new_transformers.tsv', 'openpi_pytorch_keys.tsv']
)
def test_the_table_covers_the_full_size_names_and_shapes(name):
    want = {pi05_names.TABLE.canonical(key): shape for key, shape in read_table(name).items()}
    assert len(want) == 813
    leaves, got = trees.flatten(pi05.abstract_params(pi05.Pi05Config())), {}
    for rule in pi05_names.RULES:
        shape = leaves[rule.path].shape
        for index, tensor in rule.names(shape[0]):
            stub = np.broadcast_to(np.int8(0), shape[len(index) :])  # one byte, whatever the shape
            got[tensor] = rule.tensor_map.to_torch(stub).shape
    assert want.pop(pi05_names.EXPERT_HEAD) == (257152, 1024)
    assert want.pop(pi05_names.LM_HEAD) == got[pi05_names.EMBED]
    assert got == want
    config = pi05_sizes.infer(want, {})
    assert config == pi05.Pi05Config()


def test_table_names_every_leaf_once_and_forms_are_inverse():
    leaves = trees.flatten(pi05.abstract_params(golden.config()))
    filled = {path: np.zeros(leaf.shape, int) for path, leaf in leaves.items()}
    for rule in pi05_names.RULES:
        for index, _ in rule.names(leaves[rule.path].shape[0]):
            filled[rule.path][index] += 1
            part = np.random.default_rng(0).standard_normal(filled[rule.path][index].shape)
            assert np.array_equal(
                rule.tensor_map.to_jax(rule.tensor_map.to_torch(part), part.shape), part
            )
    assert all((x == 1).all() for x in filled.values())


@pytest.mark.parametrize(
    'shape',
    [(forms.BLOCK - 1, 3), (2 * forms.BLOCK, 5), (3 * forms.BLOCK + 7, 2)],
)
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_transposing_moves_every_number_of_matrices_larger_than_a_block(shape, dtype):
    matrix = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    got = forms.transpose(matrix)
    assert got.dtype == dtype and got.flags.c_contiguous and np.array_equal(got, matrix.T)


def test_half_precision_stays_half_precision(lerobot, folder, tmp_path):
    half = {key: x.astype(ml_dtypes.bfloat16) for key, x in lerobot.items()}
    first = checkpoint.load(folder(half))
    again = checkpoint.load(checkpoint.save(first, tmp_path, tmp_path / 'out'))
    back = load_file(
        checkpoint.save(again, tmp_path, tmp_path / 'torch', 'lerobot') / 'model.safetensors'
    )
    for tree in (first.params, again.params):
        assert {x.dtype for x in trees.flatten(tree).values()} == {np.dtype(ml_dtypes.bfloat16)}
    unused = 'model.' + pi05_names.EXPERT_HEAD
    assert not np.any(back.pop(unused)) and set(back) | {unused} == set(half)
    assert all(x.tobytes() == half[key].tobytes() for key, x in back.items())


def test_a_table_that_was_trained_apart_from_the_head_wins(lerobot, folder):
    """The originals read `embed_tokens`; fine-tuning moves it and leaves the unused head behind."""
    found = checkpoint.load(folder(lerobot | {LM_HEAD: lerobot[LM_HEAD] + 1}))
    assert np.array_equal(
        found.params['PaliGemma']['llm']['embedder']['input_embedding'], lerobot[EMBED]
    )
    assert 'lm_head differs from embed_tokens and is left out' in found.notes


def test_spellings_of_other_versions(lerobot, folder):
    renamed = {
        key.replace('vision_tower.vision_model.', 'vision_tower.'): x for key, x in lerobot.items()
    }
    found = checkpoint.load(folder(renamed))
    want = trees.digest(checkpoint.load(golden.FIXTURE / LAYOUTS['lerobot']).params)
    assert trees.digest(found.params) == want
    bare = {key.removeprefix('model.'): x for key, x in renamed.items() if key != EMBED}
    assert trees.digest(checkpoint.load(folder(bare)).params) == want


def test_sharded_files(lerobot, tmp_path, folder):
    names = sorted(lerobot)
    parts = {'a.safetensors': names[:50], 'b.safetensors': names[50:]}
    for file, keys in parts.items():
        folder({key: lerobot[key] for key in keys}, file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': weight_map}))
    want = trees.digest(checkpoint.load(golden.FIXTURE / LAYOUTS['lerobot']).params)
    assert trees.digest(checkpoint.load(tmp_path).params) == want

    def refused(content, message):
        index.write_text(content)
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path)

    refused(json.dumps({'weight_map': {'x': '../a.safetensors'}}), 'the index points elsewhere')
    refused(
        json.dumps({'weight_map': {'x': 'c.safetensors'}}),
        'expected all shards that .* names, got none of c.safetensors',
    )
    refused('{"weight_map"', 'expected .*index.json to map tensors to files')
    refused('[]', 'expected .*index.json to map tensors to files')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.pop(ACTION), r'got 1 differences: missing action_in_proj.weight'),
        (lambda x: x.pop('model.time_mlp_in.bias'), r'got 1 differences: missing time_mlp_in.bias'),
        (lambda x: x.pop(EMBED) is x.pop(LM_HEAD), 'none that give vocab; missing '
                                                   '.*embed_tokens.weight'),
        (lambda x: x.update(extra=np.zeros(1)), 'unexpected extra'),
        (
            lambda x: x.update({'model.time_mlp_in.weight': np.zeros((48, 47))}),
            r'time_mlp_in.weight: expected shape \(48, 48\), got \(48, 47\)',
        ),
        (
            lambda x: x.update({ACTION: np.zeros(48)}),
            r'expected shape \(48, 8\), got \(48,\).*got F64',
        ),
        (
            lambda x: x.update({UP_PROJECTION: np.zeros((96, 48), np.float16)}),
            'layers.1.mlp.up_proj.weight: expected float32 as the rest of the action expert, got '
            'float16',
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(lerobot, folder, change, message):
    tensors = dict(lerobot)
    change(tensors)
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load(folder(tensors))
    assert '\n' not in str(caught.value)


def test_files_that_are_no_checkpoint(tmp_path):
    def refused(path, message):
        with pytest.raises(UserError, match=message):
            checkpoint.load(path)

    refused(tmp_path / 'nowhere', 'expected a checkpoint at .*nowhere, got no such file or folder')
    refused(tmp_path, r'expected model.safetensors, .* or an orbax folder `params` in .*, got \[\]')
    (tmp_path / 'pytorch_model.bin').write_bytes(b'')
    refused(tmp_path / 'pytorch_model.bin', 'pickled weights can run code and are refused')
    whole = (golden.FIXTURE / LAYOUTS['lerobot']).read_bytes()
    for length in (5, 5000, len(whole) - 1):
        (tmp_path / 'model.safetensors').write_bytes(whole[:length])
        refused(tmp_path, 'expected a whole safetensors file at .*: copy it again')


@pytest.mark.parametrize('content', ['{', '[1]', '{"language": 1}'])
def test_a_damaged_config_beside_the_weights(tmp_path, content):
    shutil.copy(golden.FIXTURE / LAYOUTS['lerobot'], tmp_path / 'model.safetensors')
    (tmp_path / 'sigma_config.json').write_text(content)
    with pytest.raises(UserError, match='expected .* in .*sigma_config.json, got'):
        checkpoint.load(tmp_path)


def test_heads_that_no_array_tells_are_asked_for(tmp_path):
    shutil.copy(golden.FIXTURE / LAYOUTS['lerobot'], tmp_path / 'model.safetensors')
    with pytest.raises(UserError, match='number of SigLIP heads cannot be read from a width of 40'):
        checkpoint.load(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'chunk_size': 10, 'num_inference_steps': 3}))
    assert sizes.read_hints(tmp_path) == {'action_horizon': 10, 'sample_steps': 3}


def write_orbax(out, tree):
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(out.absolute(), tree)
    return out


def test_leaves_under_value_as_openpis_training_saves_them(golden_params, tmp_path):
    wrapped = {f'{path}/value': np.asarray(x) for path, x in trees.flatten(golden_params).items()}
    write_orbax(tmp_path / 'params', {'params': trees.unflatten(wrapped)})
    found = checkpoint.load(tmp_path)
    assert trees.digest(found.params) == trees.digest(golden_params)
    assert found.config.action_horizon == pi05.Pi05Config().action_horizon  # no array gives


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.pop('time_mlp_in/bias'), r'got 1 differences: missing time_mlp_in/bias '
                                              r'\(48,\)'),
        (lambda x: x.pop('PaliGemma/img/pos_embedding'), 'none that give tokens; '
                                                         '.*PaliGemma/img/pos_embedding'),
        (lambda x: x.update({'time_mlp_in/bias': np.zeros(3)}), r'in/bias: expected shape \(48,\), '
                                                                r'got \(3,\)'),
        (lambda x: x.update({'action_in_proj/kernel': np.zeros(())}), r'kernel: expected shape '
                                                                      r'\(8, 48\), got \(\)'),
        (lambda x: x.update(extra=np.zeros(3)), r'unexpected extra \(3,\)'),
    ],
)  # fmt: skip
def test_orbax_trees_that_do_not_fit(golden_params, tmp_path, change, message):
    flat = {path: np.asarray(x) for path, x in trees.flatten(golden_params).items()}
    change(flat)
    write_orbax(tmp_path / 'params', {'params': trees.unflatten(flat)})
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path)


def test_an_orbax_folder_with_lost_files(tmp_path):
    """In a process of its own: Orbax's reads outlive the event loop that they report to."""
    out = tmp_path / 'openpi_jax'
    shutil.copytree(golden.FIXTURE / 'openpi_jax', out)
    (out / 'params' / 'manifest.ocdbt').unlink()
    script = golden.DATA.parents[1] / 'convert_weights.py'
    command = [
        sys.executable,
        str(script),
        f'--checkpoint={out}',
        f'--out={tmp_path / "converted"}',
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    (sentence,) = re.findall('^error: .*', run.stderr, re.MULTILINE)
    assert run.returncode == 2 and re.search(
        'expected an orbax checkpoint in .*copy it again', sentence
    )
    assert not (tmp_path / 'converted').exists()


def test_an_orbax_folder_with_damaged_metadata(tmp_path):
    out = tmp_path / 'openpi_jax'
    shutil.copytree(golden.FIXTURE / 'openpi_jax', out)
    (out / 'params' / '_METADATA').write_text('{')
    with pytest.raises(UserError, match='expected an orbax checkpoint in .*copy it again'):
        checkpoint.load(out)


def test_a_conversion_warns_of_nothing_and_leaves_the_log_as_it_was(loaded, tmp_path, caplog):
    log = logging.getLogger('absl')
    before = list(log.filters)
    checkpoint.save(loaded['lerobot'], golden.FIXTURE, tmp_path / 'out')
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []
    assert log.filters == before
    log.warning('of something else')
    assert 'of something else' in caplog.text
