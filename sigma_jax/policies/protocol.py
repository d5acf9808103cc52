"""What a policy is to who runs a robot: one raw observation in, a chunk of raw actions out."""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write
from sigma_jax.policies.chunking import ChunkingConfig
from sigma_jax.processing.spec import ProcessorConfig

# keys of an observation, LeRobot's; a camera's frame is IMAGES + its name
STATE, IMAGES, TASK = 'observation.state', 'observation.images.', 'task'
ACTIONS = 'actions'
COMMANDS = 'motor_commands'  # of a Sigma's answer: actions within the limits of its config


# (number of robots, function that compiles and runs one program for so many)
Program = tuple[int, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """What a policy takes and gives.

    Attributes:
      cameras: names of its views in order, by which frames are named; (): any, in the order in
        which the first observation of an episode has them.
      state_dim: numbers of the robot's reading, p.
      action_dim: numbers of an action, a.
      horizon: actions of a chunk, t.
      action_steps: of them, how many are carried out before the next chunk is asked for.
      processor: how it sees the world: normalisation, prompt, resize, relative joints.
      noise_shape: (t, d), steps and numbers of the noise where its flow begins; None: it does not
        act by flow.
    """

    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    horizon: int
    action_steps: int
    processor: ProcessorConfig
    noise_shape: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class PolicyState:
    """What a policy keeps of one episode of one robot; plain numbers, to be saved and put back.

    Attributes:
      episode: its number; with `frame` it keys the noise of a chunk.
      frame: observations seen since the episode began.
      cameras: those seen in it, in the order of the first observation; one that drops out is
        refused.
      memory: m_t of Sigma [d]; None without Sigma.
      tau: of the last window [e]; None without Sigma.
    """

    episode: int = 0
    frame: int = 0
    cameras: tuple[str, ...] = ()
    memory: Float[np.ndarray, 'd'] | None = None
    tau: Float[np.ndarray, 'e'] | None = None

    def save(self, file: str | pathlib.Path) -> None:
        """Writes it, whole or not at all.

        Args:
          file: .npz.

        Raises:
          UserError: its folder is not there.
        """
        if not pathlib.Path(file).parent.is_dir():
            raise UserError(f'expected a folder for {file}, got none; make it')
        buffer = io.BytesIO()
        known = {name: x for name, x in vars(self).items() if x is not None}
        np.savez(buffer, **known)
        atomic_write(pathlib.Path(file), buffer.getvalue())

    @classmethod
    def load(cls, file: str | pathlib.Path) -> 'PolicyState':
        """What `save` wrote.

        Args:
          file: of it.

        Returns:
          The state.

        Raises:
          UserError: the file holds something else.
        """
        try:
            content = io.BytesIO(pathlib.Path(file).read_bytes())
            with np.load(content, allow_pickle=False) as found:
                arrays: dict[str, Any] = {name: found[name] for name in found.files}
            cameras = tuple(str(name) for name in arrays.pop('cameras'))
            episode, frame = (int(arrays.pop(name)) for name in ('episode', 'frame'))
            return cls(episode, frame, cameras, **arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f'expected the state of a policy in {file}, got {error}; begin a new episode'
            ) from error


class Policy(Protocol):
    """Acts on robots. `infer` and `reset` serve one robot; `infer_batch` serves several at once,
    each with a state of its own that the caller keeps.

    Examples:
      >>> def rollout(env, policy, chunks):
      ...     policy.reset()
      ...     for _ in range(chunks):
      ...         actions = policy.infer(env.observe())['actions']
      ...         for action in actions[: policy.spec.action_steps]:
      ...             env.step(action)
    """

    state: PolicyState

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        ...

    def metadata(self) -> dict[str, Any]:
        """The same in words and numbers that JSON holds, for clients on other machines."""
        ...

    def reset(self) -> None:
        """Forgets what it saw: the next observation is the first of an episode. That has the next
        number, where the one before had a frame, and with it other noise: for the same chunks
        again, put back a state (`initial_state(0)`), or name `seed` or `noise`.
        """
        ...

    def programs(self, robots: Sequence[int] = (1,), cameras: Sequence[str] = ()) -> list[Program]:
        """What compiles all that acting needs, one after the other.

        Args:
          robots: numbers of robots that will be asked for at once.
          cameras: that will come, where the policy takes any; (): one.

        Returns:
          The programs, for the smallest number of robots first.
        """
        ...

    def initial_state(self, episode: int = 0) -> PolicyState:
        """The state before the first observation of an episode.

        Args:
          episode: its number; two episodes of one number have the same noise.

        Returns:
          The state.
        """
        ...

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        noise: Float[np.ndarray, 't d'] | None = None,
        seed: int | None = None,
        prefix: Float[np.ndarray, 't2 a'] | None = None,
        delay: int = 0,
        chunking: ChunkingConfig | None = None,
    ) -> Mapping[str, Any]:
        """A chunk of actions for one observation.

        Args:
          observation: raw, as the robot gives it.
            `observation.images.NAME`: the frame of a camera, uint8 [height width 3] or
              [3 height width], any size; a camera that is absent is masked, but not all may be.
              Where the policy names no cameras (`spec.cameras`), the order in which the first
              observation of an episode has them is that of its views: have it as in training.
            `observation.state`: joint readings [p], raw units (degrees, say), as in the data that
              the policy was trained on.
            `task`: the instruction, a text.
          noise: where the flow begins, `spec.noise_shape`, normalised; None draws it by the
            policy's seed, episode and frame.
          seed: of the noise of this chunk, whatever the episode and the frame: 0 to 2^32 - 1.
          prefix: what is left over of the chunk that the robot still carries out, raw units as it
            was given, from the step on that is due at this observation; None: nothing is.
          delay: steps of `prefix` that will have been carried out when the new chunk comes; no more
            than it has count.
          chunking: how the new chunk goes on from `prefix`; None: as the policy was loaded.

        Returns:
          `actions`: [t a], float32, raw units like the state's, the first to be carried out now;
            the first `delay` of them are those of `prefix`, to the bit.
          `timing`: {'infer_ms'}.
          Of a Sigma also `motor_commands`: [t a], the same within the limits of its config;
          `tau_l2`: length of tau; `branches`: vec, chk and traj before they were fused; and where
          an adapter was fitted `scale`, `risk` and `reasons`.

        Raises:
          UserError: an observation that lacks one of these, or holds something else; noise of
            another shape, or beside a seed; a prefix that does not fit, or no word on how to go on
            from it.
        """
        ...

    def infer_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        states: Sequence[PolicyState],
        *,
        noise: Sequence[Float[np.ndarray, 't d'] | None] | None = None,
        seed: Sequence[int | None] | None = None,
        prefix: Sequence[Float[np.ndarray, 't2 a'] | None] | None = None,
        delay: Sequence[int] | None = None,
        chunking: ChunkingConfig | None = None,
    ) -> tuple[list[Mapping[str, Any]], list[PolicyState]]:
        """Chunks for several robots, computed together.

        Args:
          observations: one of each robot, as for `infer`.
          states: one of each robot.
          noise: of each robot, or None.
          seed: of each robot, or None.
          prefix: of each robot, or None.
          delay: of each robot; None: 0.
          chunking: of all; None: as the policy was loaded.

        Returns:
          answers: one of each robot, as of `infer`.
          states: those after it.

        Raises:
          UserError: as `infer`; no state has changed then.
        """
        ...
