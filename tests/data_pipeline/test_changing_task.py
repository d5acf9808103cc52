"""A task that changes within an episode: every window is given what was asked for at its own first
frame.
"""

from pathlib import Path

import numpy as np
import pytest

from sigma_jax.backbones.pi05_prompt import pi05_prompt
from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.rlds.open import RldsSettings, open_rlds
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import normalize, read_norm_stats
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.data_pipeline import recordings, rlds_folder
from tests.loading import make_loader

LENGTHS = (40, 44, 36)
SPLITS = {'train_episodes': (0, 1), 'calibration_episodes': (2,), 'test_episodes': ()}
# frames at which the task turns from one to the other and back
CHANGES = [(20,), (1,), (4, 8, 9, 33)]


def tasks_of(length: int, changes: tuple[int, ...], first: int) -> np.ndarray:
    turns = np.zeros(length, int)
    turns[list(changes)] = 1
    return (np.cumsum(turns) + first) % 2


def changing(root: Path, changes: tuple[int, ...], kind: str = 'image') -> Path:
    source = recordings.record(root, LENGTHS, kind=kind)
    for index, length in enumerate(LENGTHS):
        recordings.edit_columns(source, index, task_index=tasks_of(length, changes, index % 2))
    return source


@pytest.mark.parametrize('changes', CHANGES, ids=str)
def test_every_window_of_a_lerobot_set_is_given_its_own_task(tmp_path, changes):
    """In the shards' text_id, in the prompt and in the text that the loader gives; whichever comes
    first.
    """
    prepare(recordings.config(changing(tmp_path / 'source', changes), **SPLITS), tmp_path / 'out')
    meta, tokenizer = (
        open_shards(tmp_path / 'out').meta.to_json(),
        load_tokenizer(recordings.SETTINGS['tokenizer']),
    )
    statistics = read_norm_stats(tmp_path / 'out/norm_stats.json')['state']
    dataset, seen = open_dataset(tmp_path / 'source'), set()
    for split in ('train', 'calibration'):
        for batch in make_loader(
            open_shards(tmp_path / 'out').split(split), batch_size=4, tokenizer=tokenizer
        ):
            for at in zip(*np.nonzero(batch['mask']), strict=True):
                index, frame = int(batch['episode'][at]), int(batch['frame'][at])
                want = recordings.TASKS[tasks_of(LENGTHS[index], changes, index % 2)[frame]]
                assert meta['tasks'][batch['text_id'][at]] == want
                assert tokenizer.decode(batch['text'][at][batch['text_mask'][at]]) == want
                state = normalize(dataset.read_episode(index).state[frame], statistics)
                assert tokenizer.decode(
                    batch['prompt'][at][batch['prompt_mask'][at]]
                ) == pi05_prompt(want, state)
                seen.add((index, want))
    assert {(0, task) for task in recordings.TASKS} <= seen, 'both tasks within one episode'


def test_a_v30_set_with_several_episodes_a_file_too(tmp_path):
    changing(tmp_path / 'old', (20,), kind='video')
    dataset = open_dataset(
        recordings.to_v30(tmp_path / 'old', tmp_path / 'new', LENGTHS, per_file=2)
    )
    for index, length in enumerate(LENGTHS):
        want = [recordings.TASKS[n] for n in tasks_of(length, (20,), index % 2)]
        assert list(dataset.read_episode(index).tasks) == want


@pytest.mark.parametrize('changes', [(3,), (1, 2)], ids=str)
def test_every_step_of_an_rlds_episode_has_its_own_instruction(tmp_path, changes):
    lengths = (6, 9)

    def task(index, step):
        return rlds_folder.TASKS[tasks_of(lengths[index], changes, index)[step]]

    root = rlds_folder.write(tmp_path / '1.0.0', lengths, tasks=task)
    for last_step in ('keep', 'drop'):
        settings = {'fps': 10.0, 'action': ('action/arm', 'action/gripper'), 'last_step': last_step}
        dataset = open_rlds(root, RldsSettings(**settings))
        assert sorted(dataset.tasks.values()) == sorted(rlds_folder.TASKS)
        for index, length in enumerate(lengths):
            want = [task(index, step) for step in range(length - (last_step == 'drop'))]
            assert list(dataset.read_episode(index).tasks) == want


def test_instructions_that_are_neither_one_nor_one_a_step_are_refused(tmp_path, monkeypatch):
    dataset = open_rlds(
        rlds_folder.write(tmp_path / '1.0.0', (6,), files=1),
        RldsSettings(fps=10.0, action=('action/arm', 'action/gripper')),
    )
    record = dataset._parse(0)
    del record['steps/language_instruction'].bytes_list.value[2:]
    monkeypatch.setattr(type(dataset), '_parse', lambda *_: record)
    with pytest.raises(
        UserError,
        match=r'an instruction a step \(6\), or one, in .* of episode 0, got 2; name '
        r'another',
    ):
        dataset.read_episode(0)
    del record['steps/language_instruction'].bytes_list.value[1:]
    assert dataset.read_episode(0).tasks == (rlds_folder.TASKS[0],) * 6
    record['steps/language_instruction'].bytes_list.value[0] = b'\xff'
    with pytest.raises(UserError, match='as UTF-8'):
        dataset.read_episode(0)
