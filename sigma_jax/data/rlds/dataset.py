"""RLDS data sets (TFDS folders with an episode a record) without TensorFlow.

RLDS names neither the robot's cameras nor its state, and no frame rate, so the config maps them
(`data.rlds`): columns are named by their path below `steps`, such as 'observation/image'. Several
numeric columns can make one vector.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from sigma_jax.data.episode import Episode, check_episode
from sigma_jax.data.lerobot.images import FORMATS
from sigma_jax.data.rlds.records import Record
from sigma_jax.data.rlds.schema import STEPS
from sigma_jax.errors import UserError

LAST_STEPS = ('keep', 'drop')


@dataclasses.dataclass(frozen=True)
class RldsDataset:
    """An opened data set; an episode's record is read when it is asked for.

    `columns` maps our camera keys, and 'state', 'actions' and 'task', to paths of the record;
    `widths` says how many numbers a step each numeric path has.
    """

    root: Path
    version: str
    fps: float
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: Mapping[int, Record]
    columns: Mapping[str, tuple[str, ...]]
    widths: Mapping[str, int]
    fixed_task: str
    last_step: str
    # tasks of episodes read
    seen: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def tasks(self) -> dict[int, str]:
        """Distinct instructions in the order of the episodes; those not read before are read for
        it, if they can be.
        """
        if self.fixed_task:
            return {0: self.fixed_task}
        for index in self.episodes:
            if index not in self.seen:
                with contextlib.suppress(UserError):  # whoever needs that episode gets the error
                    self.read_episode(index)
        return dict(
            enumerate(
                dict.fromkeys(task for index in sorted(self.seen) for task in self.seen[index])
            )
        )

    def read_episode(self, index: int) -> Episode:
        """Reads an episode's numbers and instruction; its frames follow on demand.

        Args:
          index: one of `episodes`.

        Returns:
          The episode.

        Raises:
          UserError: no such episode, a damaged record, a missing column, wrong widths or lengths,
            non-finite numbers.
        """
        if index not in self.episodes:
            raise UserError(
                f'expected an episode of {self.root} (0 to {len(self.episodes) - 1}), got {index}; '
                'correct the episode lists'
            )
        record = self._parse(index)
        state, actions = (self._numbers(record, name, index) for name in ('state', 'actions'))
        if len(state) != len(actions):
            raise UserError(
                f'expected as many states as actions in episode {index} of {self.root}, got '
                f'{len(state)} and {len(actions)}; the record is damaged'
            )
        length = len(actions) - (self.last_step == 'drop')
        if length < 1:
            raise UserError(
                f'expected steps in episode {index} of {self.root}, got none; leave '
                'this episode out'
            )
        tasks = self._tasks(record, index, len(actions))[:length]
        self.seen[index] = tuple(dict.fromkeys(tasks))
        episode = Episode(
            index=index,
            state=state[:length],
            actions=actions[:length],
            timestamps=np.arange(length) / self.fps,
            frame_index=np.arange(length),
            tasks=tasks,
            readers={
                camera: functools.partial(self._frames, index, camera, len(actions))
                for camera in self.cameras
            },
        )
        check_episode(episode, self.fps)
        return episode

    def _parse(self, index: int) -> Mapping[str, Any]:
        try:
            return tf_example_pb2.Example.FromString(self.episodes[index]()).features.feature
        except DecodeError as error:
            raise UserError(
                f'expected a tf.train.Example as episode {index} of {self.root}, got "{error}"; '
                'copy it again'
            ) from error

    def _numbers(
        self, record: Mapping[str, Any], name: str, index: int
    ) -> Float[np.ndarray, 'n w']:
        parts = [self._column(record, path, index) for path in self.columns[name]]
        if len(set(map(len, parts))) > 1:
            raise UserError(
                f'expected columns of one length in episode {index} of {self.root}, got '
                f'{list(map(len, parts))} for {list(self.columns[name])}; the record is damaged'
            )
        return np.concatenate(parts, axis=1)

    def _column(self, record: Mapping[str, Any], path: str, index: int) -> Float[np.ndarray, 'n w']:
        values = np.asarray(
            _values(record, path, index, self.root, ('float_list', 'int64_list')), np.float32
        )
        if values.size % self.widths[path]:
            raise UserError(
                f"expected {self.widths[path]} numbers a step in '{path}', episode {index}, got "
                f'{values.size} in all; features.json of {self.root} is wrong or the record is '
                'damaged'
            )
        return values.reshape(-1, self.widths[path])

    def _tasks(self, record: Mapping[str, Any], index: int, length: int) -> tuple[str, ...]:
        """The instruction at each of `length` steps: one a step, or one for all."""
        if self.fixed_task:
            return (self.fixed_task,) * length
        path = self.columns['task'][0]
        texts = _values(record, path, index, self.root, ('bytes_list',))
        if len(texts) not in (1, length):
            raise UserError(
                f"expected an instruction a step ({length}), or one, in '{path}' of episode "
                f'{index}, got {len(texts)}; name another column in data.rlds.instruction, or one '
                'instruction for all in data.rlds.task'
            )
        try:
            return tuple(str(text, 'utf-8') for text in texts) * (length // len(texts))
        except UnicodeDecodeError as error:
            raise UserError(
                f"expected an instruction as UTF-8 in '{path}' of episode {index}, got "
                f'"{error}"; name another column in data.rlds.instruction, or one instruction for '
                'all in data.rlds.task'
            ) from error

    def _frames(
        self, index: int, camera: str, length: int, rows: Sequence[int]
    ) -> Iterator[np.ndarray]:
        path = self.columns[camera][0]
        encoded = _values(self._parse(index), path, index, self.root, ('bytes_list',))
        if len(encoded) != length:
            raise UserError(
                f"expected {length} images in '{path}' of episode {index}, got {len(encoded)}; "
                'the record is damaged'
            )
        for row in rows:
            yield _decode(encoded[row], f"'{path}', episode {index}, step {row} of {self.root}")


def _values(
    record: Mapping[str, Any], path: str, index: int, root: Path, kinds: tuple[str, ...]
) -> Sequence[Any]:
    """The values of a column, of one of the `kinds` of a tf.train.Feature."""
    if path not in record:
        names = sorted(name for name in record if name.startswith(f'{STEPS}/'))
        raise UserError(
            f"expected a column '{path}' in episode {index} of {root}, got {names}; "
            'correct data.rlds'
        )
    kind = record[path].WhichOneof('kind')
    if kind not in kinds:
        raise UserError(
            f"expected {' or '.join(kinds)} in '{path}' of episode {index}, got "
            f'{kind}; correct data.rlds'
        )
    return getattr(record[path], kind).value


def _decode(data: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return np.asarray(image.convert('RGB'))
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise UserError(
            f'expected an encoded image in {where}, got "{error}"; the record is damaged'
        ) from error
