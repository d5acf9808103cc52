"""`verify` on the golden fixture: every quantity is compared, a wrong one is found, and a bad
fixture is refused.
"""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax.convert.parity import fixture, verify
from sigma_jax.errors import UserError
from tests import golden

LEROBOT = golden.FIXTURE / 'lerobot.safetensors'


def write(folder, inputs=None, outputs=None, **config):
    """A fixture folder: the golden one with changes; a value of None takes a key away."""

    def changed(old, new):
        return {key: x for key, x in (old | (new or {})).items() if x is not None}

    folder.mkdir(exist_ok=True)
    np.savez(folder / 'inputs.npz', **changed(golden.inputs(), inputs))
    np.savez(folder / 'outputs.npz', **changed(golden.outputs(), outputs))
    stored = json.loads((golden.FIXTURE / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(changed(stored, config)))
    return folder


def only(*names):
    """Changes to `outputs` that leave these quantities alone."""
    return {key: None for key in golden.outputs() if key not in names}


def test_every_golden_quantity_is_equal():
    rows = verify.verify(LEROBOT, golden.FIXTURE)
    named = [row.quantity + ('_openpi' if row.source == 'openpi' else '') for row in rows]
    assert named == list(golden.outputs()) and len(rows) == 28
    assert all(row.verdict in ('equal', 'equal (<= 0.0001)') for row in rows) and verify.passed(
        rows
    )
    exact = {row.quantity for row in rows if row.verdict == 'equal'}
    assert exact == {'prefix_mask', 'prefix_positions', 'suffix_positions'}
    assert max(row.max_abs for row in rows) < 6e-5 and min(row.cosine for row in rows) > 1 - 1e-9


def test_a_wrong_weight_shows_where_it_acts_and_not_before(tmp_path):
    tensors = load_file(LEROBOT)
    tensors[
        'model.paligemma_with_expert.paligemma.model.language_model.layers.2.input_layernorm.weight'
    ] *= 1.05
    checkpoint = tmp_path / 'checkpoint'
    checkpoint.mkdir()
    save_file(tensors, checkpoint / 'model.safetensors')
    shutil.copy(golden.FIXTURE / 'config.json', checkpoint)
    rows = verify.verify(checkpoint, golden.FIXTURE)
    assert {row.quantity for row in rows if row.differs} == {
        'prefix_hidden',
        'suffix_hidden',
        'velocity',
        'loss',
        'sampled_actions',
    }
    assert not verify.passed(rows)


def test_other_cameras_first_tokens_unknown_quantities_and_bfloat16(tmp_path):
    """A fixture of two quantities and one that nobody knows, of cameras with names of their own."""
    i, o = golden.inputs(), golden.outputs()
    names = {'cam0': 'observation.images.up', 'cam1': 'side_openpi'}
    inputs = {new + end: i[old + end] for old, new in names.items() for end in ('', '_mask')}
    inputs |= {old + end: None for old in names for end in ('', '_mask')} | {
        'time': None,
        'noise': None,
    }
    kept = {
        'image_embeddings_side_openpi': o['image_embeddings_cam1'][:, :3],
        'sampled_actions': o['sampled_actions'],
        'wrist_force': np.ones((3, 2)),
    }
    config = {'cameras': list(names.values()), 'library': 'lerobot 0.6', 'dtype': 'bfloat16'}
    folder = write(tmp_path / 'fixture', inputs, only() | kept, **config)
    actions, image, unknown = verify.verify(LEROBOT, folder, dtype='bfloat16')
    assert (image.quantity, image.source) == ('image_embeddings_side_openpi', 'lerobot 0.6')
    assert 1e-4 < image.max_rel < 0.05 and image.verdict == actions.verdict == (
        'equal (cosine >= 0.999)'
    )
    assert unknown == verify.Row('wrist_force', 'lerobot 0.6', None, None, None, 'unknown')
    assert verify.passed([image, unknown]) and not verify.passed([unknown])


def test_numbers_of_a_row_are_those_of_numpy():
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((3, 4, 5)).astype(np.float32)
    ours = theirs + 1e-3 * rng.standard_normal(theirs.shape).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], bool)
    ours[0, 3] = 100.0  # a masked row
    row = verify.compare('x', 'y', ours, theirs, 1e-2, mask=mask)
    a, b = (
        np.concatenate([x[0, :2], x[1], x[2, 1:3]]).astype(np.float64).ravel()
        for x in (ours, theirs)
    )
    assert (
        row.max_abs == np.abs(a - b).max() and row.max_rel == np.abs(a - b).max() / np.abs(b).max()
    )
    np.testing.assert_allclose(
        row.cosine, (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), rtol=1e-12
    )
    assert row.verdict == 'equal (<= 0.01)' and not row.differs
    assert verify.compare('x', 'y', ours, theirs, 1e-2).verdict == 'DIFFERS (> 0.01)'
    assert (
        verify.compare('x', 'y', -ours, theirs, 1e-2, half=True, mask=mask).verdict
        == 'DIFFERS (cosine < 0.999)'
    )


@pytest.mark.parametrize(
    ('ours', 'theirs', 'verdict'),
    [
        (np.zeros((2, 3)), np.zeros((2, 3)), 'equal (<= 0.1)'),
        (np.full((2, 3), 1e-9), np.zeros((2, 3)), 'DIFFERS (> 0.1)'),  # nothing is close to zero
        (np.array([[1, np.nan]]), np.array([[1.0, 1.0]]), 'DIFFERS (ours is not finite)'),
        # positions: to the digit
        (np.array([[100, 101]]), np.array([[100, 102]]), 'DIFFERS (expected the same)'),
    ],
)
def test_edges_of_a_comparison(ours, theirs, verdict):
    assert verify.compare('x', 'y', ours, theirs, 0.1).verdict == verdict


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'inputs': {'cam1_mask': None}}, 'expected cam1_mask in .*inputs.npz, got actions, cam0'),
        ({'inputs': {'time': None}}, 'expected time in .*inputs.npz'),
        ({'inputs': {'sample_noise': None}}, 'expected sample_noise in .*inputs.npz'),
        ({'cameras': ['cam0', 'wrist']}, 'expected wrist, wrist_mask in .*inputs.npz'),
        (
            {'inputs': {'cam0': np.zeros((3, 57, 56, 3))}},
            r'cam0: expected \(3, 56, 56, 3\), got '
            r'\(3, 57, 56, 3\)',
        ),
        ({'inputs': {'time': np.zeros(2)}}, r'time: expected \(3,\), got \(2,\)'),
        (
            {'inputs': {'noise': np.zeros((3, 9, 8))}},
            r'noise: expected \(3, 10, 8\), got \(3, 9, '
            r'8\)',
        ),
        (
            {'inputs': {'tokens': np.zeros(3, int)}},
            r'expected tokens of shape \(batch, length\) .* '
            r'got \(3,\)',
        ),
        (
            {'inputs': {'tokens': np.full((3, 24), 512)}},
            'expected token ids from 0 to 511 .* got 0 to 512',
        ),
    ],
)
def test_inputs_that_do_not_fit_the_model(tmp_path, changes, message):
    found = fixture.read_fixture(write(tmp_path / 'fixture', **changes))
    with pytest.raises(UserError, match=message):
        verify.compute(golden.config(), {}, found, {'velocity', 'sampled_actions'})


def test_a_fixture_of_another_model(tmp_path):
    vlm = json.loads((golden.FIXTURE / 'config.json').read_text())['vlm'] | {'depth': 18}
    found = fixture.read_fixture(write(tmp_path / 'fixture', vocab_size=257152, vlm=vlm))
    with pytest.raises(
        UserError, match='vocab_size 257152 in the fixture, 512 in the checkpoint; vlm.depth 18 in'
    ):
        fixture.check_sizes(found, golden.config())
    fewer = fixture.read_fixture(
        write(tmp_path / 'fewer', vocab_size=None, vlm=None, siglip=None, action_expert=None)
    )
    assert fixture.check_sizes(fewer, golden.config()) is None


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'outputs': {'loss': np.full((3, 10, 8), np.nan)}},
            'expected finite numbers in loss of .*outputs.npz',
        ),
        (
            {'outputs': {'loss': np.array([None, 1])}},
            'expected numpy arrays in .*outputs.npz, got: .*pickle',
        ),
        (
            {'outputs': {'loss': np.array(['a'])}},
            'expected numbers in loss of .*outputs.npz, got dtype <U1',
        ),
        ({'outputs': only()}, 'expected quantities in .*outputs.npz, got none'),
        ({'cameras': None}, "expected 'cameras' and 'num_steps' in .*config.json, got KeyError"),
        (
            {'cameras': 'cam0'},
            'expected names of cameras and a number of steps in .*config.json, got cam0, 10',
        ),
        ({'num_steps': 0}, 'expected names of cameras and a number of steps'),
    ],
)
def test_fixtures_that_cannot_be_used(tmp_path, changes, message):
    folder = write(tmp_path / 'fixture', **changes)
    with pytest.raises(UserError, match=message) as caught:
        verify.verify(LEROBOT, folder)
    assert '\n' not in str(caught.value)


def test_damaged_fixtures_and_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match='got no .*nowhere/config.json; check the path'):
        verify.verify(LEROBOT, tmp_path / 'nowhere')
    folder = write(tmp_path / 'fixture')
    whole = (folder / 'inputs.npz').read_bytes()
    for length in (0, 100, len(whole) // 2):
        (folder / 'inputs.npz').write_bytes(whole[:length])
        with pytest.raises(
            UserError, match='expected numpy arrays in .*inputs.npz, got: .*; copy it again'
        ):
            verify.verify(LEROBOT, folder)
    with pytest.raises(
        UserError, match="expected one of float32, bfloat16 to compute in, got 'float16'"
    ):
        verify.verify(LEROBOT, golden.FIXTURE, dtype='float16')


def test_quantities_of_another_shape():
    with pytest.raises(
        UserError,
        match=r'expected velocity of shape \(3, 10, 8\) in outputs.npz, '
        r'got \(3, 10, 7\)',
    ):
        verify.compare('velocity', 'lerobot', np.zeros((3, 10, 8)), np.zeros((3, 10, 7)), 1e-4)
    with pytest.raises(
        UserError,
        match=r'expected loss of shape \(3, 10, 8\) in outputs.npz, got '
        r'\(3, 9, 8\)',
    ):
        verify.compare('loss', 'lerobot', np.zeros((3, 10, 8)), np.zeros((3, 9, 8)), 1e-4)
