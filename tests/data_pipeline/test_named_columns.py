"""Data sets whose states, actions and cameras have other names than LeRobot's own, as those of
openpi's examples.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import data_so101
from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.sources import open_source
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings, rlds_folder

LENGTHS = (20, 22, 21)
STATE, ACTION = 'observation.state', 'action'
OPENPI = {
    STATE: 'state',
    ACTION: 'actions',
    recordings.CAMERAS[0]: 'image',
    recordings.CAMERAS[1]: 'wrist_image',
}


def renamed(root: Path, names: dict[str, str], kind: str = 'image') -> Path:
    """A recording under other names, in info.json, in the files and in the folders of videos."""
    recordings.record(root, LENGTHS, kind=kind)
    features = json.loads((root / 'meta/info.json').read_text())['features']
    recordings.edit_info(
        root, features={names.get(key, key): value for key, value in features.items()}
    )
    for path in root.glob('data/*/*.parquet'):
        table = pq.read_table(path)
        pq.write_table(
            table.rename_columns([names.get(name, name) for name in table.column_names]), path
        )
    for camera in recordings.CAMERAS if kind == 'video' else ():
        folder = root / 'videos/chunk-000' / camera
        folder.rename(folder.with_name(names[camera]))
    return root


def split(root: Path, column: str, into: dict[str, int]) -> None:
    """Cuts a column of vectors into several; a part of one number becomes a column of scalars."""
    info = json.loads((root / 'meta/info.json').read_text())
    parts = {
        name: {'dtype': 'float32', 'shape': [width], 'names': [name]}
        for name, width in into.items()
    }
    kept = {key: value for key, value in info['features'].items() if key != column}
    recordings.edit_info(root, features=kept | parts)
    for path in root.glob('data/*/*.parquet'):
        table, first = pq.read_table(path), 0
        values = np.array(table[column].to_pylist(), np.float32)
        table = table.drop([column])
        for name, width in into.items():
            part = values[:, first : first + width]
            table = table.append_column(name, pa.array(part[:, 0] if width == 1 else list(part)))
            first += width
        pq.write_table(table, path)


def followed(message: str) -> dict[str, str]:
    """The flags that a message advises to add to a command."""
    return dict(re.findall(r'--config\.data\.(\w+)=(\S+)', message))


@pytest.mark.parametrize('kind', ['image', 'video'])
def test_the_same_numbers_and_images_under_other_names(tmp_path, kind):
    plain = open_dataset(recordings.record(tmp_path / 'plain', LENGTHS, kind=kind))
    root = renamed(tmp_path / 'openpi', OPENPI, kind)
    names = {'state_column': 'state', 'action_column': 'actions'}
    dataset = open_source(root, {**names, 'camera_map': {'observation.images.base': 'image'}})
    assert dataset.cameras == ('observation.images.base', 'wrist_image')
    assert dataset.state_names == plain.state_names and dataset.action_names == plain.action_names
    for index in plain.episodes:
        one, other = dataset.read_episode(index), plain.read_episode(index)
        assert np.array_equal(one.state, other.state) and np.array_equal(one.actions, other.actions)
        for ours, theirs in zip(dataset.cameras, recordings.CAMERAS, strict=True):
            assert np.array_equal(
                list(one.frames(ours, [3, 8])), list(other.frames(theirs, [3, 8]))
            )


@pytest.mark.parametrize(
    ('names', 'want'),
    [
        (OPENPI, {'state_column': 'state', 'action_column': 'actions'}),
        ({STATE: 'state'}, {'state_column': 'state'}),
        ({ACTION: 'actions'}, {'action_column': 'actions'}),
        ({STATE: 'observation.arm_state', ACTION: 'action.joints'},
         {'state_column': 'observation.arm_state', 'action_column': 'action.joints'}),
        ({STATE: 'observation.robot_state', ACTION: 'teleop_action'},
         {'state_column': 'observation.robot_state', 'action_column': 'teleop_action'}),
        ({STATE: 'qpos', ACTION: 'command'}, {'state_column': 'NAME'}),
    ],
)  # fmt: skip
def test_what_the_message_advises_works(tmp_path, names, want):
    root = renamed(tmp_path, names)
    with pytest.raises(
        UserError, match="expected a feature '(observation.state|action)' in .*info.json, got"
    ) as said:
        open_source(root)
    advice = followed(str(said.value))
    assert advice == want
    if 'NAME' not in advice.values():
        assert len(open_source(root, advice).read_episode(1).state) == LENGTHS[1]


def test_states_in_several_columns_stand_side_by_side(tmp_path):
    """As openpi's conversion of DROID has them."""
    plain = open_dataset(recordings.record(tmp_path / 'plain', LENGTHS))
    root = renamed(tmp_path / 'droid', {ACTION: 'actions'})
    split(root, STATE, {'joint_position': 5, 'gripper_position': 1})
    with pytest.raises(UserError, match='expected a feature') as said:
        open_source(root)
    assert followed(str(said.value)) == {
        'state_column': 'joint_position,gripper_position',
        'action_column': 'actions',
    }
    dataset = open_source(root, followed(str(said.value)))
    assert np.array_equal(dataset.read_episode(2).state, plain.read_episode(2).state)
    assert dataset.state_names[4:] == ('joint_position.4', 'gripper_position')
    turned = open_source(
        root, {'state_column': 'gripper_position, joint_position', 'action_column': 'actions'}
    )
    assert np.array_equal(
        turned.read_episode(2).state, np.roll(plain.read_episode(2).state, 1, axis=1)
    )
    assert turned.state_names[:2] == ('gripper_position', 'joint_position.0')


def test_states_and_actions_are_no_audio(tmp_path):
    root = renamed(tmp_path, OPENPI)
    assert open_dataset(root, 'state', 'actions').audios == {}


def test_they_are_prepared_and_recorded_in_meta(tmp_path):
    root = renamed(tmp_path / 'data', OPENPI)
    settings = data_so101.get_config().data
    settings.update(
        source=str(root), cameras=('image', 'wrist_image'), image_size=24, min_motion=0.0
    )
    settings.update(state_column='state', action_column='actions')
    meta = prepare(DataConfig.from_settings(settings.to_dict()), tmp_path / 'out').meta.to_json()
    assert (meta['state_column'], meta['action_column']) == ('state', 'actions')
    assert meta['camera_names'] == ['image', 'wrist_image']
    records = open_shards(tmp_path / 'out').split('train').records()
    episode, frame = int(records.index.episode[1]), int(records.index.frame[1])
    assert np.array_equal(
        records[1].state, open_dataset(root, 'state', 'actions').read_episode(episode).state[frame]
    )
    seen = records[1].images[1, 6:18].astype(int)
    assert (
        np.abs(seen - recordings.camera_image(episode, frame, recordings.CAMERAS[1])[0, 0]).max()
        <= 3
    )


def test_a_preparation_of_other_columns_is_another_one(tmp_path):
    root = recordings.record(tmp_path / 'data', LENGTHS)
    prepare(recordings.config(root), tmp_path / 'out')
    with pytest.raises(UserError, match='to have action_column=observation.state, got action'):
        prepare(recordings.config(root, action_column=STATE), tmp_path / 'out')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'state_column': 'stat'},
            "expected a feature 'stat' in .*, got .*--config.data.state_column=state",
        ),
        ({'state_column': ''}, 'expected a feature named by data.state_column in'),
        (
            {'state_column': 'state,image', 'action_column': 'actions'},
            r"expected 'image' of shape "
            r'\[1\] to \[32\] in',
        ),
        (
            {'state_column': 'state,' * 6, 'action_column': 'actions'},
            r'expected 1 to 32 numbers in '
            r'.*, got 36 in',
        ),
    ],
)
def test_names_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        open_source(renamed(tmp_path, OPENPI), settings)


def test_a_name_in_the_metadata_alone_is_reported(tmp_path):
    root = renamed(tmp_path, OPENPI)
    features = json.loads((root / 'meta/info.json').read_text())['features']
    recordings.edit_info(
        root, features={STATE: features.pop('state'), ACTION: features.pop('actions'), **features}
    )
    with pytest.raises(
        UserError, match='where meta/info.json calls a column otherwise than the file, correct it'
    ):
        open_dataset(root).read_episode(0)


def test_other_sources_have_settings_of_their_own(tmp_path):
    rlds_folder.write(tmp_path / '1.0.0', (6, 7))
    with pytest.raises(
        UserError,
        match='only for LeRobot data sets, got .*; use data.rlds.state and data.rlds.action',
    ):
        open_source(tmp_path, {'rlds': {'fps': 10.0}, 'state_column': 'state'})


def test_cameras_that_are_not_there_are_reported_with_those_that_are(tmp_path):
    root = renamed(tmp_path / 'data', OPENPI)
    names = {'state_column': 'state', 'action_column': 'actions'}
    with pytest.raises(UserError, match='expected data.cameras out of') as said:
        prepare(recordings.config(root, **names), tmp_path / 'out')
    assert "--config.data.cameras=\"('image','wrist_image')\"" in str(said.value)
