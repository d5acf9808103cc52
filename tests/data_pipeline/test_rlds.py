"""RLDS without TensorFlow: what TFDS has written comes out, and damage ends in one sentence."""

import json
import shutil
from pathlib import Path

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from sigma_jax.data.rlds import tfrecord
from sigma_jax.data.rlds.crc32c import crc32c
from sigma_jax.data.rlds.open import RldsSettings, open_rlds
from sigma_jax.errors import UserError
from tests.data_pipeline import rlds_folder as folder

LENGTHS = (6, 9, 7)
ACTION = ('action/arm', 'action/gripper')
SETTINGS = {'fps': 10.0, 'action': ACTION}


@pytest.fixture(scope='module')
def intact(tmp_path_factory) -> Path:
    return folder.write(tmp_path_factory.mktemp('rlds') / '1.0.0', LENGTHS)


@pytest.mark.parametrize('kind', ['tfrecord', 'array_record'])
def test_episodes_equal_what_was_written(kind, tmp_path):
    dataset = open_rlds(
        folder.write(tmp_path / '1.0.0', LENGTHS, kind=kind).parent, RldsSettings(**SETTINGS)
    )
    assert dataset.cameras == ('observation.images.image', 'observation.images.wrist_image')
    assert (dataset.fps, len(dataset.state_names), dataset.action_names[-2:]) == (
        10,
        7,
        ('action.arm.5', 'action.gripper.0'),
    )
    assert dataset.tasks == dict(enumerate(folder.TASKS)) and dataset.version == 'RLDS robot 1.0.0'
    for index, length in enumerate(LENGTHS):
        episode, steps = dataset.read_episode(index), folder.episode(index, length)['steps']
        assert len(episode) == length and episode.task == folder.TASKS[index % 2]
        assert np.array_equal(episode.state, [step['observation']['state'] for step in steps])
        assert np.array_equal(episode.actions[:, :6], [step['action']['arm'] for step in steps])
        assert (
            np.array_equal(episode.actions[:, 6], np.arange(length) % 2)
            and episode.actions.dtype == np.float32
        )
        np.testing.assert_allclose(np.diff(episode.timestamps), 0.1)
        frames = list(episode.frames('observation.images.image', [1, 4]))
        assert np.array_equal(frames, [folder.camera_image(index, n) for n in (1, 4)])
        (wrist,) = episode.frames('observation.images.wrist_image', [2])
        assert (
            wrist.shape == (12, 32, 3)
            and np.abs(wrist.astype(int) - folder.camera_image(index, 2)[::2]).max() <= 3
        )


def test_numbers_equal_those_of_tfds_own_parser(intact):
    dataset = open_rlds(intact, RldsSettings(**SETTINGS))
    known = tfds.features.FeaturesDict.from_config(intact)
    for index in dataset.episodes:
        example = known._example_parser_np.parse_example(dataset.episodes[index]())
        episode = dataset.read_episode(index)
        assert np.array_equal(episode.state, example['steps']['observation']['state'])
        assert np.array_equal(episode.actions[:, :6], example['steps']['action']['arm'])


def test_settings_map_columns_cameras_and_the_last_step(intact):
    cameras = {'observation.images.up': 'observation/wrist_image'}
    more = {
        'cameras': cameras,
        'task': 'do it',
        'last_step': 'drop',
        'state': 'action/arm',
        'instruction': 'nowhere',
    }
    dataset = open_rlds(intact, RldsSettings(**SETTINGS | more))
    episode = dataset.read_episode(1)
    assert dataset.cameras == ('observation.images.up',) and dataset.tasks == {0: 'do it'}
    assert len(episode) == LENGTHS[1] - 1 and np.array_equal(episode.state, episode.actions[:, :6])


def test_checksum_and_framing_are_tensorflows_own():
    path = Path(grain.__file__).parent / '_src/python/testdata/morris_sequence_first_5.tfrecord'
    assert path.is_file()
    assert [tfrecord.read_record(place) for place in tfrecord.list_records(path)][:3] == [
        b'1',
        b'1 1',
        b'2 1',
    ]
    assert crc32c(b'123456789') == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    data = np.random.default_rng(0).bytes(70_003)
    assert tfrecord.masked_crc32c(data) == folder.masked(data)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


FILE = 'robot-train.tfrecord-00001-of-00002'
DAMAGE = {
    'no features': (
        lambda root: (root / 'features.json').unlink(),
        'expected one folder with features.json',
    ),
    'broken features': (
        lambda root: (root / 'features.json').write_text('{"a'),
        'expected the features of TFDS',
    ),
    'a list': (lambda root: (root / 'features.json').write_text('[]'), "a feature 'steps'"),
    'no steps': (
        lambda root: edit(root / 'features.json', '"steps"', '"frames"'),
        "a feature 'steps'",
    ),
    'no file': (lambda root: (root / FILE).unlink(), "expected 2 files of the split 'train'"),
    'no records': (
        lambda root: [path.unlink() for path in root.glob('*.tfrecord*')],
        'got none; set data.rlds.split',
    ),
    'cut': (
        lambda root: (root / FILE).write_bytes((root / FILE).read_bytes()[:-9]),
        'the file is cut short',
    ),
    'length': (
        lambda root: flip(root / FILE, 3),
        'the length of a TFRecord with its checksum at 0',
    ),
    'claimed 10 GB': (
        lambda root: (root / FILE).write_bytes(claim(10**10)),
        'a record of 10000000000 bytes',
    ),
    'data': (lambda root: flip(root / FILE, 500), 'to match its checksum'),
    'no example': (
        lambda root: (root / FILE).write_bytes(folder.frame(b'\xff\xff') * 2),
        'a tf.train.Example as',
    ),
    'empty example': (
        lambda root: (root / FILE).write_bytes(folder.frame(b'') * 2),
        "'steps/observation/state' in",
    ),
    'counts': (lambda root: edit(root / 'dataset_info.json', '"2"', '"5"'), 'expected 6 episodes'),
    'broken info': (
        lambda root: (root / 'dataset_info.json').write_text('{'),
        'expected the splits of TFDS',
    ),
    'width': (lambda root: edit(root / 'features.json', '"7"', '"5"'), 'expected 5 numbers a step'),
}


def claim(length: int) -> bytes:
    head = length.to_bytes(8, 'little')
    return head + folder.masked(head).to_bytes(4, 'little') + b'data'


@pytest.mark.parametrize('name', DAMAGE)
def test_damage_is_reported_in_one_sentence(name, intact, tmp_path):
    root = Path(shutil.copytree(intact, tmp_path / 'robot'))
    damage, expected = DAMAGE[name]
    damage(root)
    with pytest.raises(UserError) as caught:
        dataset = open_rlds(root, RldsSettings(**SETTINGS))
        [dataset.read_episode(index) for index in dataset.episodes]
    text = str(caught.value)
    assert (
        expected in text and text.startswith('expected') and ', got ' in text and '\n' not in text
    )


WRONG = {
    'fps': ({'fps': 0.0}, 'expected the steps a second'),
    'fps kind': ({'fps': 'ten'}, "got 'ten'"),
    'split': ({'split': 'val'}, "got ['train']"),
    'state': (
        {'state': 'observation/joints'},
        "['action/arm', 'action/gripper', 'is_last', 'observation/state',",
    ),
    'image as state': ({'state': 'observation/image'}, 'of kind tensor (data.rlds.state)'),
    'too wide': (
        {'state': ('observation/state',) * 5},
        'data.rlds.state of 1 to 32 numbers, got 35',
    ),
    'instruction': (
        {'instruction': 'text'},
        "['episode_metadata/file_path', 'language_instruction']",
    ),
    'camera': (
        {'cameras': {'up': 'observation/top'}},
        "'observation/image', 'observation/wrist_image'",
    ),
    'last step': ({'last_step': 'guess'}, "out of ('keep', 'drop')"),
}


@pytest.mark.parametrize('name', WRONG)
def test_settings_that_do_not_fit(name, intact):
    changes, expected = WRONG[name]
    with pytest.raises(UserError) as caught:
        open_rlds(intact, RldsSettings(**SETTINGS | changes))
    assert expected in str(caught.value)


def test_no_class_named_in_the_metadata_is_imported(intact, tmp_path):
    root = Path(shutil.copytree(intact, tmp_path / 'robot'))
    names = json.loads((root / 'features.json').read_text())
    hostile = json.dumps(names).replace('tensorflow_datasets.core.features', 'antigravity.hostile')
    (root / 'features.json').write_text(hostile)
    assert len(open_rlds(root, RldsSettings(**SETTINGS)).read_episode(0)) == LENGTHS[0]


def test_an_episode_that_is_not_there_and_an_image_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, 'encode', lambda image, kind: b'no picture')
    dataset = open_rlds(folder.write(tmp_path / 'robot', (3,), files=1), RldsSettings(**SETTINGS))
    with pytest.raises(UserError, match='got 1; correct the episode lists'):
        dataset.read_episode(1)
    with pytest.raises(UserError, match="image in 'steps/observation/image', episode 0, step 2"):
        next(dataset.read_episode(0).frames('observation.images.image', [2]))
