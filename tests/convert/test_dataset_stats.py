"""Statistics of a data set that --stats names: exact where its rows are, doubted where they are
not.
"""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from sigma_jax.convert import assets
from sigma_jax.convert.stats_source import find_statistics
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import Scaling
from sigma_jax.processing.spec import LEROBOT
from tests import golden
from tests.data_pipeline import recordings

SETS = golden.DATA / 'lerobot'
PICK = golden.DATA.parents[1] / 'assets' / 'so101_pickplace'


def rows(root):
    table = pq.read_table(root / 'data')
    return {
        name: np.array(table[name].to_pylist())
        for name in ('observation.state', 'action', 'episode_index')
    }


def found(root, scalings=None, joints=(), horizon=50):
    notes = []
    return find_statistics(
        root, scalings or LEROBOT.scalings(), joints, horizon, notes.append
    ), notes


@pytest.mark.parametrize('root', [SETS / 'v3.0', SETS / 'v2.1', PICK], ids=['v3.0', 'v2.1', 'pick'])
@pytest.mark.parametrize('mode', ['quantile', 'quantile10', 'min_max', 'mean_std'])
def test_statistics_of_a_data_set_are_those_of_its_rows(root, mode):
    scaling = Scaling(mode, 'lerobot')
    statistics, notes = found(root, {'state': scaling, 'actions': scaling})
    for name, column in (('state', 'observation.state'), ('actions', 'action')):
        values = rows(root)[column].astype(np.float64)
        for key, level in (('q01', 0.01), ('q90', 0.9), ('q99', 0.99), ('min', 0), ('max', 1)):
            want = np.quantile(values, level, axis=0)
            np.testing.assert_allclose(getattr(statistics[name], key), want, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(statistics[name].std, values.std(0), rtol=1e-6)
    assert notes[0].startswith(f'{root}: exact statistics of its {len(rows(root)["action"])} rows')
    assert ('LeRobot joins' in notes[0]) == (root.name == 'v3.0' and mode == 'quantile')


def test_the_note_says_what_the_stated_ones_would_have_done():
    notes = found(SETS / 'v3.0')[1]
    stated = json.loads((SETS / 'v3.0' / 'meta' / 'stats.json').read_text())['observation.state']
    x = rows(SETS / 'v3.0')['observation.state']
    share = ((x < stated['q01']) | (x > stated['q99'])).mean(0)
    assert (
        f'{share.mean():.0%} of state lie outside ({share.min():.1%} to {share.max():.1%} by joint)'
    ) in notes[0]


@pytest.mark.parametrize(
    ('joints', 'horizon'), [((True,) * 5 + (False,), 8), ((False, True) * 3, 20)]
)
def test_statistics_of_relative_actions_are_of_whole_chunks(joints, horizon):
    statistics, notes = found(PICK, joints=joints, horizon=horizon)
    data, parts = rows(PICK), []
    for index in np.unique(data['episode_index']):
        of = data['episode_index'] == index
        state, action = data['observation.state'][of], data['action'][of]
        parts += [
            action[i : i + horizon] - joints * state[i] for i in range(len(action) - horizon + 1)
        ]
    want = np.concatenate(parts)
    for key, level in (('q01', 0.01), ('q99', 0.99), ('max', 1)):
        np.testing.assert_allclose(
            getattr(statistics['actions'], key), np.quantile(want, level, axis=0), atol=1e-4
        )
    assert f'of chunks of {horizon}, each from the state at its start' in notes[-1]
    assert not any('must hold' in note for note in notes)


def test_relative_actions_without_a_whole_chunk_are_refused():
    with pytest.raises(
        UserError,
        match='an episode of 900 rows in .* for statistics of relative actions, got 6 actions',
    ):
        found(SETS / 'v3.0', joints=(True,) * 6, horizon=900)
    with pytest.raises(UserError, match='expected 4 actions and an episode of 5 rows'):
        found(SETS / 'v3.0', joints=(True,) * 4, horizon=5)


def meta_only(tmp_path):
    return shutil.copytree(SETS / 'v3.0' / 'meta', tmp_path / 'set' / 'meta').parent


def test_without_rows_the_stated_ones_are_doubted_by_single_episodes(tmp_path):
    root = meta_only(tmp_path)
    statistics, notes = found(root)
    stated = json.loads((root / 'meta' / 'stats.json').read_text())
    assert statistics['actions'].q99.tolist() == stated['action']['q99']
    assert 'not checked against its rows' in notes[0] and 'is not here' in notes[0]
    assert (
        'q01..q99 of state are averages of those of its 3 episodes, no quantiles: about 6% of '
        'the values'
    ) in notes[1]
    assert any('absolute actions' in note for note in found(root, joints=(True,) * 6)[1])


def test_without_rows_and_episodes_the_moments_are_asked(tmp_path):
    root = meta_only(tmp_path)
    shutil.rmtree(root / 'meta' / 'episodes')
    body = json.loads((root / 'meta' / 'stats.json').read_text())
    body['action'] |= {'q01': [-0.1] * 6, 'q99': [0.1] * 6}
    (root / 'meta' / 'stats.json').write_text(json.dumps(body))
    assert any(
        note.startswith('q01..q99 of actions 0, 1, 2, 3, 4, 5 cannot be quantiles')
        for note in found(root)[1]
    )


def test_damaged_rows_are_said_and_the_stated_ones_taken(tmp_path):
    root = shutil.copytree(SETS / 'v3.0', tmp_path / 'set', ignore=shutil.ignore_patterns('videos'))
    (root / 'data' / 'chunk-000' / 'file-000.parquet').write_bytes(b'PAR1 but no more')
    statistics, notes = found(root)
    assert statistics['state'].q01 is not None and 'not checked against its rows' in notes[0]


def test_no_video_is_needed(tmp_path):
    root = recordings.record(tmp_path / 'set', (30, 40))
    want = found(root)[0]
    table = pq.read_table(root / 'data/chunk-000/episode_000000.parquet')
    assert len(table) == 30 and want['state'].q01.shape == (6,)
    bare = shutil.copytree(
        SETS / 'v3.0', tmp_path / 'bare', ignore=shutil.ignore_patterns('videos')
    )
    assert 'exact statistics of its 75 rows' in found(bare)[1][0]


def test_a_policys_own_quantiles_are_kept_and_doubted(tmp_path):
    """LeRobot trains by what its data set states; the numbers stay, as the policy knows no
    others.
    """
    folder = shutil.copytree(golden.DATA / 'policies' / 'lerobot_0_6_1', tmp_path / 'policy')
    from safetensors.numpy import load_file, save_file

    for file in folder.glob('policy_*.safetensors'):
        body = load_file(file)
        centre = body['observation.state.mean']
        save_file(
            body | {'observation.state.q01': centre - 0.1, 'observation.state.q99': centre + 0.1},
            file,
        )
    read = assets.read(folder)
    (note,) = [note for note in read.notes if note.startswith('q01..q99 of state')]
    assert 'cannot be quantiles' in note and 'the policy keeps them' in note
    stats = golden.DATA.parents[1] / 'assets' / 'pi05_tiny' / 'norm_stats.json'
    assert not any('q01..q99' in note for note in assets.read(folder, stats=stats).notes)
