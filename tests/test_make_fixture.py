"""`tools/make_fixture.py` without a public implementation: its arguments, inputs, files, and what
it says when refused.

What LeRobot and openpi compute through it is tested where they are installed (marker `reference`).
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from sigma_jax.convert.parity import fixture, verify
from tests import golden

TOOLS = pathlib.Path(__file__).parents[1] / 'tools'
TINY = golden.FIXTURE / 'config.json'
CHECKPOINT = golden.FIXTURE / 'lerobot.safetensors'
LIBRARIES = {
    'lerobot': (CHECKPOINT, ''),
    'openpi-jax': (golden.FIXTURE / 'openpi_jax', '_openpi'),
    'openpi-pytorch': (golden.FIXTURE / 'openpi_pytorch.safetensors', ''),
}


@pytest.fixture
def tool(monkeypatch):
    """The tool's modules, by name; they stand outside the package."""
    monkeypatch.syspath_prepend(str(TOOLS))
    names = ('make_fixture', 'fixture_inputs', 'fixture_torch', 'fixture_library', 'fixture_jax')
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def flags(tool, out='out', library='lerobot', checkpoint=CHECKPOINT, *more):
    return tool.make_fixture.parse(
        ['--library', library, '--checkpoint', str(checkpoint), '--out', str(out), *more]
    )


def known():
    """Outputs as a library gives them: the golden ones, without the parts that are cut from the
    prefix.
    """
    return {
        k: x
        for k, x in golden.outputs().items()
        if not k.startswith(('image_', 'token_')) and 'openpi' not in k
    }


def test_inputs_follow_the_seed_and_hold_what_a_comparison_needs(tool):
    settings = tool.fixture_inputs.read_settings(
        flags(tool, 'out', 'lerobot', CHECKPOINT, '--tiny-config', str(TINY))
    )
    make = tool.fixture_inputs.make_inputs
    one, same, other = (make(settings, ['up', 'side'], 3, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, same[key]) for key, x in one.items())
    assert not np.array_equal(one['up'], other['up']) and not np.array_equal(
        one['noise'], other['noise']
    )
    shapes = {key: (x.shape, str(x.dtype)) for key, x in golden.inputs().items()}
    renamed = {key.replace('cam0', 'up').replace('cam1', 'side'): x for key, x in shapes.items()}
    assert {key: (x.shape, str(x.dtype)) for key, x in one.items()} == renamed
    assert one['up_mask'].all() and one['side_mask'].tolist() == [True, False, True]
    lengths = one['token_mask'].sum(axis=1)
    assert len(set(lengths)) == 3 and lengths.max() == 24
    tokens, mask = one['tokens'], one['token_mask']
    assert (tokens[:, 0] == 2).all() and (tokens[~mask] == 0).all()
    assert tokens[mask][1:].min() >= 2 and tokens.max() < 512
    levels = (one['up'].astype(np.float64) + 1) / 2 * 255
    assert (
        np.abs(levels - levels.round()).max() < 1e-4
        and -1 <= one['up'].min() < -0.5 < 0.5 < one['up'].max() <= 1
    )
    neighbours = np.corrcoef(one['up'][:, 1:].ravel(), one['up'][:, :-1].ravel())[0, 1]
    assert 0.8 < neighbours < 0.99  # an image with noise, not noise
    assert (one['time'] > 0).all() and (one['time'] < 1).all()


def test_sizes_come_from_the_checkpoint_then_from_the_flags(tool, tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'')
    stored = {
        'chunk_size': 30,
        'max_action_dim': 7,
        'num_inference_steps': 5,
        'tokenizer_max_length': 60,
    }
    (tmp_path / 'config.json').write_text(
        json.dumps(stored | {'image_resolution': [112, 112], 'type': 'pi05'})
    )
    read = tool.fixture_inputs.read_settings
    got = read(flags(tool, 'out', 'lerobot', tmp_path, '--steps', '3'))
    want = {
        'action_horizon': 30,
        'action_dim': 7,
        'num_steps': 3,
        'text_length': 60,
        'image_size': 112,
    }
    assert got == {'patch_size': 14, 'vocab_size': 257152} | want
    (tmp_path / 'config.json').unlink()
    full = read(flags(tool, 'out', 'lerobot', tmp_path))
    assert (full['image_size'], full['action_dim'], full['action_horizon'], full['num_steps']) == (
        224,
        32,
        50,
        10,
    )


def test_names_of_cameras(tool):
    names = tool.fixture_inputs.camera_names
    assert names('2', 'lerobot') == ['cam0', 'cam1'] and names('4', 'openpi-jax') == [
        'cam0',
        'cam1',
        'cam2',
        'cam3',
    ]
    assert names('2', 'openpi-jax') == ['base_0_rgb', 'left_wrist_0_rgb'] and names(
        'up, side', 'lerobot'
    ) == [
        'up',
        'side',
    ]
    for text in ('up,up', 'up,', 'time'):
        with pytest.raises(
            tool.fixture_library.Failure, match='expected a number or different names'
        ):
            names(text, 'lerobot')


def test_what_it_writes_is_a_fixture_that_verify_reads(tool, tmp_path, monkeypatch, capsys):
    """The golden outputs stand in for a library's: the files must come out as the golden fixture's
    are.
    """

    def computed(flags, settings, inputs, cameras):
        settings['sizes'] = {
            key: settings['tiny'][key] for key in ('siglip', 'vlm', 'action_expert')
        }
        return known()

    monkeypatch.setattr(tool.make_fixture, 'run_torch', computed)
    out = tmp_path / 'fixture'
    arguments = ('--tiny-config', str(TINY), '--inputs', str(golden.FIXTURE / 'inputs.npz'))
    tool.make_fixture.make(flags(tool, out, 'lerobot', CHECKPOINT, *arguments))
    found, stored = fixture.read_fixture(out), json.loads(TINY.read_text())
    assert found.cameras == ('cam0', 'cam1') and found.config['library'] == 'lerobot'
    want = {key: x for key, x in golden.outputs().items() if not key.endswith('_openpi')}
    assert found.outputs.keys() == want.keys()
    assert all(np.array_equal(x, found.outputs[key]) for key, x in want.items())
    assert all(np.array_equal(x, found.inputs[key]) for key, x in golden.inputs().items())
    shared = found.config.keys() & stored.keys() - {
        'versions',
        'seed',
        'siglip',
        'vlm',
        'action_expert',
    }
    assert len(shared) == 14 and {k: found.config[k] for k in shared} == {
        k: stored[k] for k in shared
    }
    assert found.config['vlm'] == stored['vlm'] and len(found.config['checkpoint']['sha256']) == 64
    rows = verify.verify(CHECKPOINT, out)
    assert (
        verify.passed(rows)
        and len(rows) == len(want)
        and {row.source for row in rows} == {'lerobot'}
    )
    assert 'sampled_actions' in capsys.readouterr().out
    with pytest.raises(tool.fixture_library.Failure, match='not to exist yet'):
        tool.make_fixture.make(flags(tool, out))


def test_nothing_is_left_of_a_failed_run(tool, tmp_path, monkeypatch):
    def computed(flags, settings, inputs, cameras):
        settings['sizes'] = {}
        return known() | {'velocity': np.full((3, 10, 8), np.nan)}

    monkeypatch.setattr(tool.make_fixture, 'run_torch', computed)
    arguments = ('--tiny-config', str(TINY), '--inputs', str(golden.FIXTURE / 'inputs.npz'))
    with pytest.raises(
        tool.fixture_library.Failure,
        match='expected finite numbers from lerobot, got NaN .* velocity',
    ):
        tool.make_fixture.make(flags(tool, tmp_path / 'fixture', 'lerobot', CHECKPOINT, *arguments))

    def full(*args, **kwargs):
        raise OSError('no space left')

    monkeypatch.setattr(tool.make_fixture.np, 'savez_compressed', full)
    with pytest.raises(OSError, match='no space left'):
        tool.make_fixture.write(tmp_path / 'fixture', {}, {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (
            ['--checkpoint', 'nowhere'],
            'expected a checkpoint at nowhere, got no such file or folder',
        ),
        (['--tiny-config', 'nowhere.json'], 'expected the sizes of a model in nowhere.json'),
        (['--inputs', 'nowhere.npz'], 'expected the inputs.npz of a fixture at nowhere.npz'),
        (
            ['--inputs', str(golden.FIXTURE / 'outputs.npz')],
            'expected tokens, token_mask, .*, a camera with its mask in',
        ),
        (
            ['--action-dim', '7', '--inputs', str(golden.FIXTURE / 'inputs.npz')],
            '56 px and 7 action dimensions',
        ),
        (['--cameras', 'a,a'], 'expected a number or different names as --cameras'),
        ([], 'expected PyTorch in this Python, got: .*; run this inside your installation of it'),
        (
            ['--library', 'openpi-jax'],
            'expected openpi in this Python, got: .*; run this inside your installation',
        ),
    ],
)
def test_one_sentence_and_status_2(tool, tmp_path, monkeypatch, capsys, arguments, sentence):
    base = [
        'make_fixture.py',
        '--library',
        'lerobot',
        '--checkpoint',
        str(CHECKPOINT),
        '--out',
        str(tmp_path / 'out'),
    ]
    monkeypatch.setattr(sys, 'argv', [*base, *arguments])
    for name in ('torch', 'openpi', 'openpi.models.pi0'):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    assert tool.make_fixture.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f'error: .*{sentence}.*', line) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('change', [{'vlm': None}, {'vlm': {'num_heads': 4}}])
def test_tiny_configs_that_no_library_can_build(tool, tmp_path, change):
    stored = {key: x for key, x in (json.loads(TINY.read_text()) | change).items() if x is not None}
    (tmp_path / 'tiny.json').write_text(json.dumps(stored))
    with pytest.raises(
        tool.fixture_library.Failure,
        match=r'expected (vlm|8 heads of attention) '
        r'in',
    ):
        tool.fixture_inputs.read_settings(
            flags(tool, 'out', 'lerobot', CHECKPOINT, '--tiny-config', str(tmp_path / 'tiny.json'))
        )


def test_names_of_tensors_in_all_versions_are_one(tool):
    plain = tool.fixture_torch.plain
    inner = 'paligemma_with_expert.paligemma.model.vision_tower.'
    spellings = [
        'model.' + inner + 'vision_model.x',
        inner + 'vision_model.x',
        'model.' + inner + 'x',
        inner + 'x',
    ]
    assert {plain(name) for name in spellings} == {inner + 'x'}
    assert plain('model.time_mlp_in.bias') == plain('time_mlp_in.bias') == 'time_mlp_in.bias'


@pytest.mark.reference
@pytest.mark.parametrize('library', LIBRARIES)
def test_a_public_implementation_gives_the_golden_numbers_again(tmp_path, library):
    """Runs the tool in the Python that the environment names, REFERENCE_LEROBOT or
    REFERENCE_OPENPI.
    """
    variable = 'REFERENCE_' + library.split('-')[0].upper()
    python = os.environ.get(variable)
    assert python, f'set {variable} to a Python that has {library}'
    checkpoint, ending = LIBRARIES[library]
    command = [python, TOOLS / 'make_fixture.py', '--library', library, '--checkpoint', checkpoint]
    command += [
        '--tiny-config',
        TINY,
        '--inputs',
        golden.FIXTURE / 'inputs.npz',
        '--out',
        tmp_path / 'out',
    ]
    # those of our tests cost digits
    env = {key: x for key, x in os.environ.items() if key != 'XLA_FLAGS'}
    subprocess.run([str(part) for part in command], check=True, env=env)
    got, want = dict(np.load(tmp_path / 'out' / 'outputs.npz')), golden.outputs()
    # openpi under another JAX, and its PyTorch sampler (README there)
    bound = 1e-6 if library == 'lerobot' else 7e-6
    for name, x in got.items():
        np.testing.assert_allclose(
            x, want.get(name + ending, want[name]), rtol=0, atol=bound, err_msg=name
        )
    assert len(got) == 14
