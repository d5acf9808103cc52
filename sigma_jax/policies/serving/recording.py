"""What came and went at a server, kept as a LeRobot data set.

A row is a request: what the robot saw, and the first action of its answer. Requests come when they
come; the data set's clock is `fps`. Beside it, in `chunks/`, lies what a row does not hold: all
actions of every answer, a Sigma's `motor_commands`, and when it was answered; and, where Rerun is
installed, in `rerun/` each episode for its viewer.

Nothing here keeps an answer waiting or loses one: what cannot be written is told in the log.
"""

import dataclasses
import logging
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sigma_jax.data.lerobot.tables import Recording
from sigma_jax.data.lerobot.writer import LeRobotWriter
from sigma_jax.data.video.encode import VideoSettings
from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import ACTIONS, COMMANDS, IMAGES, STATE, TASK, PolicySpec
from sigma_jax.policies.serving import rrd

VIDEO = VideoSettings(codec='h264', crf=20, preset='veryfast')
LONGEST, LARGEST = 500, 256 * 2**20  # requests and bytes of an episode; then another begins
MOST = 4 * LARGEST  # bytes of episodes that wait to be written; then one is left out

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Row:
    frames: Mapping[str, np.ndarray]  # by camera, even sides
    state: np.ndarray
    task: str
    chunk: Mapping[str, np.ndarray]  # actions [t a], and a Sigma's motor commands
    time_s: float  # of the answer


class Recorder:
    """Keeps episodes as they end; the data set has its name once `close` was called.

    Args:
      out: folder to write; must not exist.
      spec: of the policy.
      fps: frames a second that the data set claims.

    Raises:
      UserError: `out` exists, or a rate below 1.
    """

    def __init__(self, out: str | pathlib.Path, spec: PolicySpec, fps: int = 10):
        self.out = pathlib.Path(out)
        if self.out.exists() or fps < 1:
            raise UserError(
                f'expected a new folder to record to and a rate of 1 or more, got {self.out} and '
                f'{fps}; choose others'
            )
        self._spec, self._fps = spec, fps
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._beside = pathlib.Path(
            tempfile.mkdtemp(prefix=f'.{self.out.name}.beside.', dir=self.out.parent)
        )
        self._folders = ('chunks', 'rerun') if rrd.installed() else ('chunks',)
        for name in self._folders:
            (self._beside / name).mkdir()
        self._writer: LeRobotWriter | None = None
        self._episodes = 0
        self._waiting, self._count = 0, threading.Lock()  # bytes
        self._whole = True
        self._thread = ThreadPoolExecutor(1, 'recorder')

    def episode(self) -> 'Episode':
        """An episode of one client, to be filled."""
        return Episode(self)

    def close(self) -> pathlib.Path | None:
        """Writes what is there, and gives the data set its name.

        Returns:
          The data set; None where nothing was recorded, or it could not be finished.
        """
        self._thread.shutdown()
        try:
            if self._writer is not None and self._episodes:
                self._writer.finish()
                for name in self._folders:
                    (self._beside / name).rename(self.out / name)
                return self.out
        except Exception as error:
            log.warning('%d recorded episodes are lost: %s', self._episodes, error)
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)
        if self._writer is not None:
            self._writer.abort()
        return None

    def keep(self, rows: Sequence[_Row], size: int) -> None:
        """Writes an episode in the recorder's thread.

        Args:
          rows: its requests.
          size: their bytes.
        """
        with self._count:
            fits = self._waiting + size <= MOST
            self._waiting += size if fits else 0
        if fits:
            self._thread.submit(self._write, rows, size)
        else:
            _leave_out(rows, 'robots are faster than the encoder')

    def _write(self, rows: Sequence[_Row], size: int) -> None:
        try:
            if self._whole:
                self._add(rows)
            else:
                _leave_out(rows, 'one before it could not be written')
        except Exception as error:
            _leave_out(rows, error)
            if not self._whole:
                log.warning(
                    'expected room for what is recorded, got none at %s: nothing more is, and '
                    'robots are answered as ever; free some, and start the server again with '
                    'another --record',
                    self.out.parent,
                )
        finally:
            with self._count:
                self._waiting -= size

    def _add(self, rows: Sequence[_Row]) -> None:
        writer = self._writer or self._open(rows[0])
        cameras = [name for name in writer.recording.cameras if name in rows[0].frames]
        images = {name: np.stack([row.frames[name] for row in rows]) for name in cameras}
        states = np.stack([row.state for row in rows])
        chunks = {name: np.stack([row.chunk[name] for row in rows]) for name in rows[0].chunk}
        try:
            writer.add_episode(states, chunks[ACTIONS][:, 0], images, rows[0].task)
        except UserError:
            raise
        except Exception:  # of the disk: no other episode fits behind this one
            self._whole = False
            raise
        name = f'episode_{self._episodes:06d}'
        self._episodes += 1
        arrays: dict[str, Any] = {**chunks, 'time_s': np.array([row.time_s for row in rows])}
        np.savez(self._beside / 'chunks' / f'{name}.npz', **arrays)
        if 'rerun' in self._folders:
            told = ((row.time_s, row.frames, row.state, row.chunk) for row in rows)
            rrd.write(self._beside / 'rerun' / f'{name}.rrd', rows[0].task, told)

    def _open(self, row: _Row) -> LeRobotWriter:
        """The data set, with the cameras of the first episode."""
        sizes = {name: (frame.shape[0], frame.shape[1]) for name, frame in row.frames.items()}
        widths = self._spec.state_dim, self._spec.action_dim
        joints, actions = (tuple(f'joint_{n}' for n in range(width)) for width in widths)
        recording = Recording(joints, sizes, self._fps, robot_type='unknown', actions=actions)
        try:
            self._writer = LeRobotWriter(self.out, recording, VIDEO)
        except Exception:  # of the disk, too
            self._whole = False
            raise
        return self._writer


class Episode:
    """Requests of one client's episode, kept in memory until it ends; it ends of itself before it
    is too long or too large for that.

    Args:
      recorder: that writes them.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._rows: list[_Row] = []
        self._bytes = 0

    def add(self, observation: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keeps a request.

        Args:
          observation: under the policy's names.
          answer: to it.
        """
        full = len(self._rows) >= LONGEST or self._bytes >= LARGEST
        if self._rows and (full or self._rows[0].task != observation[TASK]):
            self.end()
        frames = {
            key.removeprefix(IMAGES): _even(np.asarray(frame))
            for key, frame in observation.items()
            if key.startswith(IMAGES)
        }
        state, told = np.asarray(observation[STATE]), (ACTIONS, COMMANDS)
        chunk = {name: np.asarray(answer[name]) for name in told if name in answer}
        self._bytes += sum(frame.nbytes for frame in frames.values())
        self._rows.append(_Row(frames, state, observation[TASK], chunk, time.time()))

    def end(self) -> None:
        """What was kept is an episode; the next request begins another."""
        if self._rows:
            self._recorder.keep(self._rows, self._bytes)
        self._rows, self._bytes = [], 0


def _leave_out(rows: Sequence[_Row], why: object) -> None:
    log.warning('an episode of %d requests is not recorded: %s', len(rows), why)


def _even(frame: np.ndarray) -> np.ndarray:
    """A frame, channels last, without the last row and column where their number is odd."""
    last = frame if frame.shape[-1] == 3 else np.moveaxis(frame, 0, -1)
    height, width = (side // 2 * 2 for side in last.shape[:2])
    return last[:height, :width]
