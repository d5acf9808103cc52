"""Exact statistics of a LeRobot data set from its parquet columns, no video read; else those it
states, and doubts.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sigma_jax.convert.lerobot.read import ACTION, STATE, NormStats, read_json
from sigma_jax.data.lerobot import dataset as lerobot
from sigma_jax.data.lerobot.stats import numeric_stats
from sigma_jax.errors import UserError
from sigma_jax.processing import quantiles
from sigma_jax.processing.normalize import Scaling, Statistics, first_joints, statistics_from

FEATURES = {'state': STATE, 'actions': ACTION}
HORIZON = 50  # pi0.5's own


def read(
    root: pathlib.Path,
    scalings: Mapping[str, Scaling],
    relative_joints: Sequence[bool],
    horizon: int,
    note: Callable[[str], None],
) -> NormStats:
    """Statistics of a data set for use by `scalings`; of chunks of `horizon` relative actions where
    some are relative.

    They are computed from its rows where these are here; else they are taken from meta/stats.json,
    and `note` is called with what is wrong with them.

    Args:
      root: of the data set.
      scalings: how they will be used.
      relative_joints: one flag an action.
      horizon: actions of a chunk.
      note: called with what is wrong.

    Returns:
      The statistics.

    Raises:
      UserError: neither rows nor statistics, or none that the normalisation can use.
    """
    try:
        values = _rows(root)
    except UserError as error:
        return _stated(root, scalings, str(error), bool(any(relative_joints)), note)
    states, actions = (np.concatenate(parts) for parts in values)
    columns = {'state': states, 'actions': actions}
    found = {
        name: statistics_from(_entry(numeric_stats(columns[name])), scalings[name])
        for name in columns
    }
    note(f'{root}: exact statistics of its {len(states)} rows{_compared(root, columns, found)}')
    if any(relative_joints):
        # as many as the model is wide, until the robot is known
        joints = relative_joints[: actions.shape[1]]
        found['actions'] = statistics_from(
            _relative(*values, joints, horizon, root), scalings['actions']
        )
        note(
            f'those of actions are of chunks of {horizon}, each from the state at its start in '
            'relative joints'
        )
    return found


def _rows(root: pathlib.Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(states, actions) of every episode. Raises UserError where a row is not here or damaged."""
    dataset = lerobot.open_dataset(root)
    absent = sorted({str(one.data) for one in dataset.episodes.values() if not one.data.is_file()})
    if absent:
        raise UserError(f'expected rows in {absent[0]}, got none: it is not here; copy it too')
    episodes = [dataset.read_episode(index) for index in sorted(dataset.episodes)]
    return [one.state for one in episodes], [one.actions for one in episodes]


def _relative(
    states: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    joints: Sequence[bool],
    horizon: int,
    root: pathlib.Path,
) -> dict[str, Any]:
    """Statistics over all whole chunks of actions less the state at their start, as in LeRobot; a
    joint at a time.
    """
    width = actions[0].shape[1]
    if len(joints) != width or not any(len(one) >= horizon for one in actions):
        raise UserError(
            f'expected {len(joints)} actions and an episode of {horizon} rows in {root}, for '
            f'statistics of relative actions, got {width} actions and {max(map(len, actions))} '
            'rows; name a data set of this robot'
        )
    columns = []
    for joint in range(width):
        parts = []
        for state, action in zip(states, actions, strict=True):
            if len(action) >= horizon:
                chunks = np.lib.stride_tricks.sliding_window_view(action[:, joint], horizon)
                start = (
                    first_joints(state, width)[: len(chunks), joint]
                    if joints[joint]
                    else np.zeros(len(chunks))
                )
                parts.append((chunks - start[:, None].astype(np.float32)).ravel())
        columns.append(_entry(numeric_stats(np.concatenate(parts))))
    return {key: [value for one in columns for value in one[key]] for key in columns[0]}


def _entry(stats: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stats.items() if key != 'count'}


def _compared(root: pathlib.Path, columns: Mapping[str, np.ndarray], exact: NormStats) -> str:
    """What is wrong with the quantiles of meta/stats.json instead, '' where they are right or
    absent.
    """
    problems = []
    for name, feature in FEATURES.items():
        level = quantiles.LEVELS.get(exact[name].scaling.mode)
        stated = _statement(root, feature, exact[name].scaling)
        if level is None or stated is None or len(stated.mean) != columns[name].shape[1]:
            continue
        problems += quantiles.misfits({name: columns[name]}, {name: stated})
        times = quantiles.times_as_wide(stated, exact[name])
        if times.max() > quantiles.WIDE:
            problems.append(f'{name} span up to {times.max():.1f} times as much as they do')
    if not problems:
        return ''
    wrong = ' and '.join(problems)
    return (
        f'; not those of its meta/stats.json, by whose quantiles {wrong}: LeRobot joins those '
        'of episodes'
    )


def _statement(root: pathlib.Path, feature: str, scaling: Scaling) -> Statistics | None:
    try:
        return statistics_from(read_json(root / 'meta' / 'stats.json')[feature], scaling)
    except (UserError, KeyError, ValueError, TypeError, AttributeError):
        return None


def _stated(
    root: pathlib.Path,
    scalings: Mapping[str, Scaling],
    why: str,
    relative: bool,
    note: Callable[[str], None],
) -> NormStats:
    """From meta/stats.json of v3.0; v2.1 keeps statistics by episode, which have no quantiles."""
    file = root / 'meta' / 'stats.json'
    advice = f'run prepare_data.py --source={root}: its norm_stats.json has exact ones'
    if not file.is_file():
        raise UserError(f'expected meta/stats.json (format v3.0) in {root}, got none; {advice}')
    body, out = read_json(file), {}
    for name, feature in FEATURES.items():
        try:
            out[name] = statistics_from(body[feature], scalings[name])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f'expected {scalings[name].mode} statistics of {feature} in {file}, got none '
                f'({error}); {advice}'
            ) from error
    note(
        f'{root}: statistics as {file.name} states them, not checked against its rows ({why}); '
        f'{advice}'
    )
    if relative:
        note(
            f'{file.name} holds statistics of absolute actions, and those of this policy are '
            f'relative; {advice}'
        )
    doubted = _by_episodes(root, body, out) or quantiles.doubts(out, advice)
    for text in doubted:
        note(text)
    return out


def _by_episodes(
    root: pathlib.Path, body: Mapping[str, Any], stated: Mapping[str, Statistics]
) -> list[str]:
    """What the statistics of single episodes in meta/episodes say of the whole's."""
    problems = []
    for name, feature in FEATURES.items():
        if stated[name].scaling.mode != 'quantile':
            continue
        try:
            episodes = _episodes(root, feature)
            how = quantiles.how_joined(body[feature], episodes)
            share = quantiles.expected_outside(body[feature], episodes) if how else np.zeros(1)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return []
        if how:
            range_ = f'{share.min():.1%} to {share.max():.1%} by joint'
            problems.append(
                f'{quantiles.OF} {name} are {how} of those of its {len(episodes)} episodes, no '
                f'quantiles: about {share.mean():.0%} of the values lie outside ({range_}), 2% '
                f'would; run prepare_data.py --source={root} where its rows are'
            )
    return problems


def _episodes(root: pathlib.Path, feature: str) -> list[dict[str, Any]]:
    prefix, out = f'stats/{feature}/', []
    for file in sorted((root / 'meta' / 'episodes').glob('*/*.parquet')):
        table = pq.read_table(file)
        names = [name for name in table.column_names if name.startswith(prefix)]
        rows = table.select(names).to_pylist()
        out += [{name.removeprefix(prefix): value for name, value in row.items()} for row in rows]
    return out
