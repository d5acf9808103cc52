"""What a preparation will write, worked out from the columns alone: no video is decoded here."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sigma_jax.backbones import prompts
from sigma_jax.data.episode import Episode
from sigma_jax.data.lerobot.joints import ACTION, STATE
from sigma_jax.data.shards import windows as windows_lib
from sigma_jax.data.shards.check_values import check_values
from sigma_jax.data.shards.seen import episode_digest
from sigma_jax.data.shards.splits import split_episodes
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.data.shards.windows import WindowTable
from sigma_jax.data.sources import Dataset
from sigma_jax.errors import UserError
from sigma_jax.processing import quantiles
from sigma_jax.processing.images import STYLES
from sigma_jax.processing.normalize import (
    Statistics,
    compute_statistics,
    normalize,
    read_norm_stats,
)
from sigma_jax.processing.tokenizer import (
    clean_task,
    encode_parts,
    load_tokenizer,
    pad_tokens,
)
from sigma_jax.settings import check_fields, section

ON_BAD_EPISODE = ('error', 'skip')
SHOWN = 3  # bad episodes whose reasons a message gives
SOURCE_SETTINGS = ('camera_map', 'state_column', 'action_column', 'rlds', 'torch_shards')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data` part of a config; configs/data_so101.py has the usual values, with their
    origin.

    The last six say where the data are and under which names (`sigma_jax.data.sources`); a config
    may leave them out.

    Attributes:
      source: a folder of LeRobot (v2.1, v3.0), RLDS or .pt shards, or a hub id: 'owner/name' or
        'owner/name@revision'.
      cameras: the model's views, in order.
      image_size: pixels a side, as the base takes them: 224 for pi0.5.
      resize: 'openpi' (smooths when shrinking) or 'lerobot'; '': as the base does, without one
        openpi's.
      horizon: actions a window (paper 4.1: 16).
      chunk: actions of `chk`, the first of the window.
      stride: frames from window to window.
      min_motion: mean |a_{t+1} - a_t| in joint units below which a training window is dropped.
      min_action_norm: the paper's filter, on the mean norm of the actions; 0 drops nothing.
      tail: windows over an episode's end: 'drop' (paper) or 'pad'.
      shard_size: windows a file.
      split_fractions: of train, calibration and test, by episode.
      split_seed: of the draw of episodes.
      train_episodes: an explicit list, which replaces the fractions; so do the next two.
      calibration_episodes: for calibration.
      test_episodes: for the test.
      on_bad_episode: 'error', or 'skip' to leave out what cannot be read, as meta.json then says.
      depth: single-channel image features and depth maps in video.
      depth_scale: metres a unit in the shards, and in 16-bit images whose data set states none.
      audio: a column of float32 or int16 samples that end at its frame; '': none.
      audio_rate: samples a second.
      stats_from: a norm_stats.json to use instead of this data's own; '': this data's own.
      tokenizer: file, folder or hub id, to check the lengths of texts by; '' leaves that to
        training.
      max_prompt_len: tokens of the prompt; pi0.5's is 200.
      max_text_len: tokens of the task alone.
      state_dim: joints of the arm; 0 takes any width up to 32.
      prompt_state_dim: numbers of the state in the prompt: 0 the robot's own (openpi), 32 pads
        (LeRobot), -1 none.
      camera_map: {our name: the data set's}, where cameras should be called otherwise.
      state_column: of a LeRobot data set, as its meta/info.json calls it; 'a,b' puts two side by
        side.
      action_column: likewise.
      env_file: holds HF_TOKEN; '': the environment has it, or .env or sigma.env.
      rlds: settings of RLDS data (`sigma_jax/data/rlds/open.py`).
      torch_shards: settings of .pt shards of others (`sigma_jax/data/pt/shards.py`).
    """

    source: str
    cameras: tuple[str, ...]
    image_size: int
    resize: str
    horizon: int
    chunk: int
    stride: int
    min_motion: float
    min_action_norm: float
    tail: str
    shard_size: int
    split_fractions: tuple[float, ...]
    split_seed: int
    train_episodes: tuple[int, ...]
    calibration_episodes: tuple[int, ...]
    test_episodes: tuple[int, ...]
    on_bad_episode: str
    depth: tuple[str, ...]
    depth_scale: float
    audio: str
    audio_rate: float
    stats_from: str
    tokenizer: str
    max_prompt_len: int
    max_text_len: int
    state_dim: int
    prompt_state_dim: int
    camera_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    state_column: str = STATE
    action_column: str = ACTION
    env_file: str = ''
    rlds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    torch_shards: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Any) -> 'DataConfig':
        """The config from a plain dictionary.

        Args:
          settings: every field; the last six may be absent.

        Returns:
          The config.

        Raises:
          UserError: an unknown or missing name, a value of another kind, a row of another length.
        """
        values = section(settings, 'config.data')
        known = {field.name for field in dataclasses.fields(cls)}
        wrong = sorted((known ^ set(values)) - ({*SOURCE_SETTINGS, 'env_file'} - set(values)))
        if wrong:
            problem = 'unknown' if wrong[0] in values else 'missing'
            raise UserError(
                f"expected the data settings {sorted(known)}, got {problem} '{wrong[0]}'; correct "
                'the config'
            )
        check_fields(cls, values, 'config.data.')
        return cls(**values)

    @classmethod
    def of(cls, config: 'DataConfig | Mapping[str, Any]') -> 'DataConfig':
        """A config, whether it is one already or a dictionary that describes one.

        Args:
          config: either.

        Returns:
          The config.

        Raises:
          UserError: as `from_settings` does.
        """
        return config if isinstance(config, cls) else cls.from_settings(config)

    def settings(self) -> dict[str, Any]:
        """All settings that shape the result, as JSON would give them back; digests of the files
        stand for paths.
        """
        paths = {'source', 'tokenizer', 'stats_from', 'env_file'}
        kept = {key: value for key, value in dataclasses.asdict(self).items() if key not in paths}
        return json.loads(json.dumps(kept | {'resize': self.resize or STYLES[0]}))


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """What a preparation will write.

    Attributes:
      splits: {split: episodes that are used}.
      windows: {split: windows}.
      dropped: {split: {reason: windows or episodes left out}}.
      statistics: of the train episodes, raw units.
      bad: {episode: why it cannot be used}.
      digests: {episode: digest of its columns}.
      notes: what is odd and was done all the same.
    """

    splits: dict[str, list[int]]
    windows: dict[str, WindowTable]
    dropped: dict[str, dict[str, int]]
    statistics: dict[str, Statistics]
    bad: dict[int, str] = dataclasses.field(default_factory=dict)
    digests: dict[int, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def shards(self, split: str, shard_size: int) -> list[WindowTable]:
        """The windows of a split, file by file.

        Args:
          split: 'train', 'calibration' or 'test'.
          shard_size: windows of a file.

        Returns:
          Tables of windows, in order.
        """
        table = self.windows[split]
        starts = range(0, len(table), shard_size)
        return [
            table.take(np.arange(start, min(start + shard_size, len(table)))) for start in starts
        ]


def make_plan(dataset: Dataset, config: DataConfig, bad: Mapping[int, str] = {}) -> WindowPlan:
    """Cuts and filters windows, splits episodes and computes the statistics (docs/design.md,
    "Windows", docs/design.md, "Episode splits").

    Args:
      dataset: of `sources.open_source`; no frame is read.
      config: settings.
      bad: {episode: reason}; they are left out after the split, so that the others stay in theirs.

    Returns:
      The plan.

    Raises:
      UserError: settings that do not fit the data set, damaged columns, or no window left to train
        on.
    """
    splits, tables, dropped, columns = {}, {}, {}, {}
    digests: dict[int, str] = {}
    for name, indices in chosen_episodes(dataset, config).items():
        splits[name] = [index for index in indices if index not in bad]
        tables[name], dropped[name], columns[name] = _windows(
            dataset, config, splits[name], name, digests
        )
        if left_out := len(indices) - len(splits[name]):
            dropped[name]['bad episode'] = left_out
    if bad and not splits['train']:
        raise UserError(
            'expected windows to train on, got none as no episode can be read '
            f'({bad_reasons(bad)}); repair these, or choose others in data.train_episodes'
        )
    if not len(tables['train']):
        raise UserError(
            f'expected windows to train on, got none out of {len(splits["train"])} episodes '
            f'({dropped["train"]}); lower data.min_motion or data.horizon'
        )
    statistics = {name: compute_statistics(values) for name, values in columns['train'].items()}
    notes: tuple[str, ...] = ()
    if config.stats_from:
        statistics = read_norm_stats(
            config.stats_from, {name: len(one.mean) for name, one in statistics.items()}
        )
        notes = tuple(
            f'by the quantiles of {config.stats_from} {clause}; by those of this data, which are '
            'taken where data.stats_from is left out, it would be 2%'
            for clause in quantiles.misfits(columns['train'], statistics)
        )
    plan = WindowPlan(splits, tables, dropped, statistics, dict(bad), digests, notes)
    if config.tokenizer:
        check_text_lengths(plan, config)
    return plan


def bad_reasons(bad: Mapping[int, str]) -> str:
    """What is wrong with the first few bad episodes, and how many more there are.

    Args:
      bad: {episode: reason}.

    Returns:
      One clause.

    Examples:
      >>> from sigma_jax.data.shards.plan import bad_reasons
      >>> bad_reasons({n: 'no video' for n in range(5)})
      'episode 0: no video | episode 1: no video | episode 2: no video | and 2 more'
    """
    said = [f'episode {index}: {reason.rstrip(".")}' for index, reason in list(bad.items())[:SHOWN]]
    return ' | '.join([*said, *([f'and {len(bad) - SHOWN} more'] if len(bad) > SHOWN else [])])


def chosen_episodes(dataset: Dataset, config: DataConfig) -> dict[str, list[int]]:
    """Episodes of each split before any is left out.

    Args:
      dataset: of `sources.open_source`.
      config: settings.

    Returns:
      {split: episodes}.

    Raises:
      UserError: settings that do not fit the data set.
    """
    _check(dataset, config)
    explicit = {name: getattr(config, f'{name}_episodes') for name in SPLITS}
    return split_episodes(
        sorted(dataset.episodes), config.split_fractions, config.split_seed, explicit
    )


def check_text_lengths(plan: WindowPlan, config: DataConfig) -> None:
    """Checks that prompt and task of every window are as short as the config says.

    Args:
      plan: its windows and statistics.
      config: tokenizer and lengths.

    Raises:
      UserError: one has more tokens.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    for table in plan.windows.values():
        states = normalize(table.state, plan.statistics['state'])
        for task, state in zip(table.task, states, strict=True):
            parts = prompts.USUAL(task, state, config.prompt_state_dim)
            pad_tokens(encode_parts(tokenizer, parts), config.max_prompt_len)
        for task in sorted(set(table.task)):
            pad_tokens(tokenizer.encode(clean_task(task)), config.max_text_len, 'text')


def _check(dataset: Dataset, config: DataConfig) -> None:
    unknown = [name for name in config.cameras if name not in dataset.cameras]
    if unknown or not config.cameras:
        depth = [name for name in unknown if name in getattr(dataset, 'depths', ())]
        advice, setting, names = 'name cameras of this data set', 'cameras', tuple(dataset.cameras)
        if depth:
            advice, setting, names = 'depth has a setting of its own', 'depth', tuple(depth)
        flag = f'--config.data.{setting}="{names}"'.replace(' ', '')
        raise UserError(
            f'expected data.cameras out of {list(dataset.cameras)}, got {unknown or "none"}; '
            f'{advice}, as in {flag} on the command line'
        )
    if config.state_dim and len(dataset.state_names) != config.state_dim:
        raise UserError(
            f'expected states of width {config.state_dim} (data.state_dim), got '
            f'{len(dataset.state_names)} in {dataset.root}; choose the matching config or set '
            'data.state_dim=0 to take any width'
        )
    if config.on_bad_episode not in ON_BAD_EPISODE:
        raise UserError(
            f'expected data.on_bad_episode out of {ON_BAD_EPISODE}, got '
            f'{config.on_bad_episode!r}; correct the config'
        )
    if config.resize not in ('', *STYLES):
        raise UserError(
            f'expected data.resize out of {STYLES}, got {config.resize!r}; correct the config'
        )
    check_values(config, len(dataset.state_names))
    for name in (
        'image_size',
        'horizon',
        'chunk',
        'stride',
        'shard_size',
        'max_prompt_len',
        'max_text_len',
    ):
        if getattr(config, name) < 1:
            raise UserError(
                f'expected data.{name} of at least 1, got {getattr(config, name)}; '
                'correct the config'
            )
    if config.chunk > config.horizon:
        raise UserError(
            f'expected data.chunk up to data.horizon={config.horizon}, got {config.chunk}; lower it'
        )


def _windows(
    dataset: Dataset, config: DataConfig, indices: list[int], split: str, digests: dict[int, str]
) -> tuple[WindowTable, dict[str, int], dict[str, np.ndarray]]:
    """Windows of a split's episodes, counts of those left out, and the episodes' columns (every
    frame).

    Adds what each episode is to `digests`.
    """
    tables, states, actions, short, tails = [], [], [], 0, 0
    for index in indices:
        episode = dataset.read_episode(index)
        digests[index] = episode_digest(episode)
        table = windows_lib.cut_windows(
            episode, horizon=config.horizon, stride=config.stride, tail=config.tail
        )
        short += not len(table)
        tails += len(range(0, len(episode), config.stride)) - len(table)
        tables.append(table)
        states.append(episode.state)
        actions.append(episode.actions)
    if not tables:
        return _no_windows(dataset, config), {}, {}
    table = windows_lib.concatenate(tables)
    dropped = {'episode shorter than the horizon': short, 'tail shorter than the horizon': tails}
    if split == 'train':
        limits = {'min_motion': config.min_motion, 'min_action_norm': config.min_action_norm}
        table, reasons = windows_lib.filter_windows(table, **limits)
        dropped |= reasons
    return table, dropped, {'state': np.concatenate(states), 'actions': np.concatenate(actions)}


def _no_windows(dataset: Dataset, config: DataConfig) -> WindowTable:
    nothing = (
        np.zeros((1, len(dataset.state_names)), np.float32),
        np.zeros((1, len(dataset.action_names)), np.float32),
    )
    one = Episode(0, *nothing, np.zeros(1), np.zeros(1, np.int64), ('',), {})
    table = windows_lib.cut_windows(one, horizon=config.horizon, stride=config.stride, tail='pad')
    return table.take(np.zeros(0, int))


def describe_statistics(
    statistics: Mapping[str, Statistics], names: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Names the near-constant dimensions, whose normalisation is clamped.

    Args:
      statistics: by quantity.
      names: of the dimensions, by quantity.

    Returns:
      {quantity: names}.
    """
    return {
        quantity: tuple(names[quantity][i] for i in np.flatnonzero(one.near_constant))
        for quantity, one in statistics.items()
    }
