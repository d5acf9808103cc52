"""Settings that do not fit a data set end in one sentence: what was expected, what came, what to do
next.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.plan import make_plan
from sigma_jax.errors import UserError
from tests.data_pipeline import recordings
from tests.data_pipeline.recordings import edit_info

LENGTH = 20
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def intact(tmp_path_factory) -> Path:
    return recordings.record(
        tmp_path_factory.mktemp('intact'), (LENGTH, LENGTH, LENGTH), kind='video'
    )


def is_one_sentence(text: str) -> bool:
    return (
        text.startswith('expected')
        and ', got ' in text
        and not text.endswith('.')
        and '\n' not in text
    )


SETTINGS = {
    'unknown camera': ({'cameras': ('observation.images.wrist',)}, 'observation.images.wrist'),
    'no camera': ({'cameras': ()}, 'got none'),
    'state width': ({'state_dim': 7}, 'width 7'),
    'unknown episode': ({'train_episodes': (0, 9)}, 'unknown [9]'),
    'overlap': ({'train_episodes': (0, 1), 'test_episodes': (1,)}, 'a repeated one'),
    'only test': ({'test_episodes': (1,)}, 'none for train'),
    'fractions': ({'split_fractions': (0.5, 0.1, 0.1)}, 'add up to 1'),
    'tail': ({'tail': 'wrap'}, "got 'wrap'"),
    'bad episodes': ({'on_bad_episode': 'ignore'}, "got 'ignore'"),
    'stride': ({'stride': 0}, 'data.stride'),
    'chunk': ({'chunk': 17}, 'data.chunk'),
    'nothing left': ({'min_motion': 1e9}, 'windows to train on'),
    'horizon': ({'horizon': LENGTH + 1, 'chunk': 1}, 'windows to train on'),
    'statistics': ({'stats_from': 'nowhere.json'}, 'nowhere.json'),
    'prompt': ({'max_prompt_len': 9}, 'at most 9 tokens'),
    'tokenizer': ({'tokenizer': 'nowhere.json'}, 'nowhere.json'),
    'prompt without less than a state': (
        {'prompt_state_dim': -2},
        'data.prompt_state_dim of at least -1',
    ),
    'no motion': ({'min_motion': float('nan')}, 'a number for data.min_motion, got nan'),
    'no norm': ({'min_action_norm': float('nan')}, 'a number for data.min_action_norm, got nan'),
    'a camera twice': (
        {'cameras': (recordings.CAMERAS[0],) * 2},
        f"'{recordings.CAMERAS[0]}' twice",
    ),
    'split seed': ({'split_seed': -1}, 'data.split_seed of at least 0, got -1'),
    'a prompt of one state': ({'prompt_state_dim': 1}, 'data.prompt_state_dim of at least 6'),
    'a prompt of all states but one': ({'prompt_state_dim': 5}, 'got 5; set it to 0'),
}


@pytest.mark.parametrize('width', [-1, 0, 6, 7, 32])
def test_prompts_as_wide_as_the_robot_or_wider_are_planned(width: int, intact: Path) -> None:
    config = recordings.config(intact, prompt_state_dim=width, max_prompt_len=128)
    assert len(make_plan(open_dataset(intact), config).windows['train'])


@pytest.mark.parametrize(
    ('columns', 'setting'),
    [
        (('observation.state,observation.state', 'action'), 'state_column'),
        (('observation.state', 'action, observation.state,action'), 'action_column'),
    ],
)
def test_a_column_twice(columns: tuple[str, str], setting: str, intact: Path) -> None:
    with pytest.raises(
        UserError, match=f"different names in data.{setting}, got '.*' twice"
    ) as caught:
        open_dataset(intact, *columns)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize('name', SETTINGS)
def test_settings_that_do_not_fit(name: str, intact: Path) -> None:
    changes, expected = SETTINGS[name]
    with pytest.raises(UserError) as caught:
        make_plan(open_dataset(intact), recordings.config(intact, **changes))
    assert expected in str(caught.value)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize(('count', 'rest'), [(2, ''), (3, ''), (5, ' | and 2 more')])
def test_why_no_episode_is_left_to_train_on(count: int, rest: str, intact: Path) -> None:
    bad = {index: f'expected a file of {index}, got none; fetch it' for index in range(count)}
    config = recordings.config(intact, train_episodes=(0, 1), calibration_episodes=(2,))
    with pytest.raises(UserError) as caught:
        make_plan(open_dataset(intact), config, bad)
    said = ' | '.join(
        f'episode {i}: expected a file of {i}, got none; fetch it' for i in range(min(count, 3))
    )
    assert f'({said}{rest})' in str(caught.value) and 'data.train_episodes' in str(caught.value)
    assert 'min_motion' not in str(caught.value) and is_one_sentence(str(caught.value))


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
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    assert ('does not exist' if problem == 'missing' else "got 'v1.6'") in done.stderr
