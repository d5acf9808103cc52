"""Windows hold the right actions, statistics and flags; filters drop what they say."""

import itertools

import numpy as np
import pytest

from sigma_jax.data.episode import Episode
from sigma_jax.data.shards.splits import split_episodes
from sigma_jax.data.shards.windows import concatenate, cut_windows, filter_windows, first_windows


def episode(length: int, index: int = 0, actions: np.ndarray | None = None) -> Episode:
    ramp = np.arange(length, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    tasks = tuple(f'task {i // 10}' for i in range(length))
    return Episode(
        index, ramp, ramp if actions is None else actions, ramp[:, 0], np.arange(length), tasks, {}
    )


@pytest.mark.parametrize(
    ('length', 'stride', 'frames'), [(20, 4, [0, 4]), (16, 1, [0]), (15, 1, []), (33, 16, [0, 16])]
)
def test_dropped_tails_end_inside_the_episode(length: int, stride: int, frames: list[int]) -> None:
    windows = cut_windows(episode(length), horizon=16, stride=stride)
    assert windows.frame.tolist() == frames
    assert windows.action_mask.all()
    for frame, actions, state in zip(windows.frame, windows.actions, windows.state, strict=True):
        assert np.array_equal(actions[:, 0], frame + np.arange(16))
        assert np.array_equal(state, [frame, frame])


def test_padded_tails_repeat_the_last_action_and_say_so() -> None:
    windows = cut_windows(episode(10), horizon=4, stride=4, tail='pad')
    assert windows.frame.tolist() == [0, 4, 8]
    assert windows.actions[2, :, 0].tolist() == [8, 9, 9, 9]
    assert windows.action_mask.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    # padding would pull the last one down
    np.testing.assert_allclose(windows.avg_motion, np.sqrt(2))
    np.testing.assert_allclose(windows.avg_action_l2[2], np.sqrt(2) * 8.5, rtol=1e-6)


def test_statistics_equal_their_formulas() -> None:
    actions = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    windows = cut_windows(episode(40, actions=actions), horizon=16, stride=5)
    for i, frame in enumerate(windows.frame):
        part = actions[frame : frame + 16]
        norms = [np.sqrt((a**2).sum()) for a in part]
        steps = [np.sqrt(((b - a) ** 2).sum()) for a, b in itertools.pairwise(part)]
        expected = [np.mean(norms), np.max(norms), np.mean(steps), np.max(steps)]
        found = [
            getattr(windows, name)[i]
            for name in ('avg_action_l2', 'max_action_l2', 'avg_motion', 'max_motion')
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_task_is_that_of_the_first_frame() -> None:
    windows = cut_windows(episode(40), horizon=16, stride=8)
    assert windows.task.tolist() == ['task 0', 'task 0', 'task 1', 'task 2']


def still_in_the_middle() -> Episode:
    actions = np.ones((64, 2), np.float32)
    actions[:, 0] = np.concatenate([np.arange(16), np.full(32, 16), 16 + np.arange(16)])
    return episode(64, actions=actions)


def test_motion_filter_drops_standstill_and_breaks_the_chain() -> None:
    windows = cut_windows(still_in_the_middle(), horizon=16, stride=16)
    kept, dropped = filter_windows(windows, min_motion=0.1, min_action_norm=0)
    assert kept.frame.tolist() == [0, 48]
    assert dropped == {'avg_motion below min_motion': 2, 'avg_action_l2 below min_action_norm': 0}
    assert first_windows(windows, 16).tolist() == [True, False, False, False]
    assert first_windows(kept, 16).tolist() == [True, True]


def test_the_papers_norm_filter_keeps_a_standstill_far_from_zero() -> None:
    windows = cut_windows(still_in_the_middle(), horizon=16, stride=16)
    kept, dropped = filter_windows(windows, min_motion=0, min_action_norm=9)
    assert kept.frame.tolist() == [16, 32, 48]
    assert dropped['avg_action_l2 below min_action_norm'] == 1


def test_chains_do_not_cross_episodes() -> None:
    tables = [cut_windows(episode(32, index), horizon=16, stride=16) for index in (4, 7)]
    joined = concatenate(tables)
    assert joined.episode.tolist() == [4, 4, 7, 7]
    assert first_windows(joined, 16).tolist() == [True, False, True, False]


def test_splits_are_disjoint_complete_and_fixed_by_the_seed() -> None:
    none: dict[str, tuple[int, ...]] = {}
    splits = split_episodes(range(50), (0.6, 0.2, 0.2), 0, none)
    assert {name: len(part) for name, part in splits.items()} == {
        'train': 30,
        'calibration': 10,
        'test': 10,
    }
    assert sorted(index for part in splits.values() for index in part) == list(range(50))
    assert splits == split_episodes(range(49, -1, -1), (0.6, 0.2, 0.2), 0, none)
    assert splits != split_episodes(range(50), (0.6, 0.2, 0.2), 1, none)


def test_explicit_lists_replace_the_fractions() -> None:
    explicit = {'train': (3, 1), 'calibration': (), 'test': (0,)}
    splits = split_episodes(range(5), (1, 0, 0), 0, explicit)
    assert splits == {'train': [1, 3], 'calibration': [], 'test': [0]}
