"""pi0.5's prompt: the task, and the state as text; numpy only, for the processes of a loader."""

import numpy as np
from jaxtyping import Float, Int

from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import NO_STATE, clean_task

_BINS = np.linspace(-1, 1, 257)[:-1]


def discretise_state(state: Float[np.ndarray, ' p']) -> Int[np.ndarray, ' p']:
    """The bin of each normalised value: 256 bins over [-1, 1] (as openpi and LeRobot).

    Args:
      state: normalised.

    Returns:
      0 to 255; 255 above the range, -1 below it.

    Raises:
      UserError: a value that is no number; the originals would write 255 for it.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.backbones.pi05_prompt import discretise_state
      >>> discretise_state(np.array([-1.5, -1.0, 0.0, 1.0])).tolist()
      [-1, 0, 128, 255]
    """
    if np.isnan(state).any():
        raise UserError(
            f'expected numbers in the normalised state, got {state}; look at the reading behind it'
        )
    return np.digitize(state, bins=_BINS) - 1


def pi05_prompt(task: str, state: Float[np.ndarray, ' p'], width: int = 0) -> str:
    """pi0.5's prompt: task, and state as bins.

    openpi, and LeRobot from 0.5 on, write the robot's own joints; LeRobot before 0.5 all 32 places.

    Args:
      task: the instruction.
      state: normalised.
      width: the state is zero-padded to it.

    Returns:
      The text.

    Raises:
      UserError: the state holds NaN.

    Examples:
      >>> import numpy as np
      >>> from sigma_jax.backbones.pi05_prompt import pi05_prompt
      >>> pi05_prompt('lift the brick', np.array([-1.0, 0.0]), width=3).splitlines()
      ['Task: lift the brick, State: 0 128 128;', 'Action: ']
    """
    padded = np.pad(state, (0, width - len(state))) if width > len(state) else state
    bins = ' '.join(map(str, discretise_state(padded)))
    return f'Task: {clean_task(task)}, State: {bins};\nAction: '


def prompt_parts(task: str, state: Float[np.ndarray, ' p'], width: int = 0) -> tuple[str, ...]:
    """The texts of a prompt, each of which becomes ids of its own.

    Without the state openpi writes pi0's prompt: the task, and a line end that is encoded apart
    from it.

    Args:
      task: the instruction.
      state: normalised.
      width: as for `pi05_prompt`; NO_STATE (-1) leaves the state out.

    Returns:
      One text or two.
    """
    return (clean_task(task), '\n') if width == NO_STATE else (pi05_prompt(task, state, width),)
