"""Every damaged or hostile data set ends in one sentence: what was expected, what came, what to do next."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sigma_jax.data.lerobot import open_dataset
from sigma_jax.data.plan import make_plan
from sigma_jax.data.prepare import prepare
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings
from tests.data_pipeline.recordings import CAMERAS, edit_columns, edit_info

LENGTH = 20
REPOSITORY = Path(__file__).parents[2]


def rows(value: np.ndarray) -> list[np.ndarray]:
    return list(value.astype(np.float32))


def with_nan(width: int = 6) -> list[np.ndarray]:
    values = np.zeros((LENGTH, width))
    values[3, 2] = np.nan
    return rows(values)


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def shorten_video(root: Path) -> None:
    frames = [recordings.picture(1, i, CAMERAS[0]) for i in range(LENGTH - 15)]
    recordings.write_video(root / recordings.video_path(1, CAMERAS[0]), frames)


def jumping_times() -> np.ndarray:
    times = np.arange(LENGTH) / recordings.FPS
    times[10:] += 1
    return times.astype(np.float32)


def template(part: str) -> str:
    return 'videos/' + part + '/{video_key}/episode_{episode_index:06d}.mp4'


VIDEO = Path(recordings.video_path(1, CAMERAS[0]))
PARQUET = Path('data/chunk-000/episode_000001.parquet')
DAMAGE = {
    'no info': (lambda root: (root / 'meta/info.json').unlink(), 'info.json'),
    'broken info': (lambda root: (root / 'meta/info.json').write_text('{"fps":'), 'JSON'),
    'old version': (lambda root: edit_info(root, codebase_version='v2.0'), "got 'v2.0'"),
    'no version': (lambda root: edit_info(root, codebase_version=None), 'got None'),
    'no features': (lambda root: edit_info(root, features={}), "Expected 'features'"),
    'no fps': (lambda root: edit_info(root, fps=0), "Expected 'fps'"),
    'other fps': (lambda root: edit_info(root, fps=60), 'got a step of 2.00 frames'),
    'no tasks': (lambda root: (root / 'meta/tasks.jsonl').unlink(), 'tasks.jsonl'),
    'task unknown': (lambda root: edit_columns(root, 1, task_index=np.full(LENGTH, 7)), 'got 7'),
    'no episodes': (lambda root: (root / 'meta/episodes.jsonl').write_text(''), 'at least one episode'),
    'no parquet': (lambda root: (root / PARQUET).unlink(), 'episode_000001.parquet'),
    'cut parquet': (lambda root: truncate(root / PARQUET, 0.5), 'readable parquet'),
    'missing column': (lambda root: edit_columns(root, 1, action=None), "column 'action'"),
    'state width': (lambda root: edit_columns(root, 1, observation__state=rows(np.zeros((LENGTH, 5)))), 'got 5'),
    'action width': (lambda root: edit_columns(root, 1, action=rows(np.zeros((LENGTH, 7)))), 'got 7'),
    'NaN states': (lambda root: edit_columns(root, 1, observation__state=with_nan()), 'got nan at frame 3'),
    'NaN actions': (lambda root: edit_columns(root, 1, action=with_nan()), 'got nan at frame 3'),
    'null actions': (lambda root: edit_columns(root, 1, action=[None] * LENGTH), 'missing values'),
    'time jumps': (lambda root: edit_columns(root, 1, timestamp=jumping_times()), 'at frame 9'),
    'frames repeat': (lambda root: edit_columns(root, 1, frame_index=np.arange(LENGTH) // 2), 'frame_index'),
    'other episode': (lambda root: edit_columns(root, 1, episode_index=np.zeros(LENGTH, int)), 'got 0'),
    'no video': (lambda root: (root / VIDEO).unlink(), 'got nothing there'),
    'empty video': (lambda root: (root / VIDEO).write_bytes(b''), 'Expected a'),
    'cut video': (lambda root: truncate(root / VIDEO, 0.6), 'truncated'),
    'no video at all': (lambda root: (root / VIDEO).write_text('<html>not found</html>'), 'readable video'),
    'short video': (shorten_video, 'shorter than the rows'),
    'path leaves': (lambda root: edit_info(root, video_path=template('../../..')), 'inside the data set'),
    'absolute path': (lambda root: edit_info(root, video_path='/etc/{video_key}'), 'inside the data set'),
    'path field': (lambda root: edit_info(root, video_path='{video_key.__class__}'), 'path template'),
    'path width': (lambda root: edit_info(root, data_path='{episode_index:0999999999d}'), 'path template'),
    'no video path': (lambda root: edit_info(root, video_path=None), 'video_path'),
}


@pytest.fixture(scope='module')
def intact(tmp_path_factory) -> Path:
    return recordings.record(tmp_path_factory.mktemp('intact'), (LENGTH, LENGTH, LENGTH), kind='video')


def is_one_sentence(text: str) -> bool:
    return text.startswith('Expected') and ', got ' in text and text.endswith('.') and '\n' not in text


@pytest.mark.parametrize('name', DAMAGE)
def test_damage_is_told_in_one_sentence(name: str, intact: Path, tmp_path) -> None:
    root = tmp_path / 'data'
    shutil.copytree(intact, root)
    damage, expected = DAMAGE[name]
    damage(root)
    with pytest.raises(UserError) as caught:
        prepare(recordings.config(root), tmp_path / 'out')
    assert expected in str(caught.value)
    assert is_one_sentence(str(caught.value))
    assert not (tmp_path / 'out' / 'meta.json').exists()


SETTINGS = {
    'unknown camera': ({'cameras': ('observation.images.wrist',)}, 'observation.images.wrist'),
    'no camera': ({'cameras': ()}, 'got none'),
    'state width': ({'state_dim': 7}, 'width 7'),
    'unknown episode': ({'train_episodes': (0, 9)}, 'unknown [9]'),
    'overlap': ({'train_episodes': (0, 1), 'test_episodes': (1,)}, 'a repeated one'),
    'only test': ({'test_episodes': (1,)}, 'none for train'),
    'fractions': ({'split_fractions': (0.5, 0.1, 0.1)}, 'add up to 1'),
    'tail': ({'tail': 'wrap'}, "got 'wrap'"),
    'stride': ({'stride': 0}, 'data.stride'),
    'chunk': ({'chunk': 17}, 'data.chunk'),
    'nothing left': ({'min_motion': 1e9}, 'windows to train on'),
    'horizon': ({'horizon': LENGTH + 1, 'chunk': 1}, 'windows to train on'),
    'statistics': ({'stats_from': 'nowhere.json'}, 'nowhere.json'),
    'prompt': ({'max_prompt_len': 9}, 'at most 9 tokens'),
    'tokenizer': ({'tokenizer': 'nowhere.json'}, 'nowhere.json'),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_settings_that_do_not_fit(name: str, intact: Path) -> None:
    changes, expected = SETTINGS[name]
    with pytest.raises(UserError) as caught:
        make_plan(open_dataset(intact), recordings.config(intact, **changes))
    assert expected in str(caught.value)
    assert is_one_sentence(str(caught.value))


def test_unknown_setting() -> None:
    with pytest.raises(UserError, match="unknown 'strides'"):
        recordings.config(Path('x'), strides=4)


def test_missing_data_set_and_unknown_episode_and_camera(intact: Path) -> None:
    with pytest.raises(UserError, match='does not exist'):
        open_dataset('/no/such/place')
    dataset = open_dataset(intact)
    with pytest.raises(UserError, match='got 3'):
        dataset.read_episode(3)
    with pytest.raises(UserError, match="got 'wrist'"):
        next(dataset.read_episode(0).frames('wrist'))
    assert len(dataset.episodes) == 3


@pytest.mark.parametrize('problem', ['missing', 'version'])
def test_the_script_exits_with_a_sentence(problem: str, intact: Path, tmp_path) -> None:
    root = tmp_path / 'data'
    if problem == 'version':
        shutil.copytree(intact, root)
        edit_info(root, codebase_version='v1.6')
    command = [sys.executable, 'prepare_data.py', f'--source={root}', f'--out={tmp_path / "out"}']
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    assert ('does not exist' if problem == 'missing' else "got 'v1.6'") in done.stderr
