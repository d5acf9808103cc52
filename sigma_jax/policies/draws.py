"""Where the flow of a robot's chunk begins: at noise that the caller names, instead of that which
seed, episode and frame draw.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from sigma_jax.errors import UserError
from sigma_jax.policies.given import floats

SEEDS = 2**32


@struct.dataclass
class Draws:
    """Where the chunks of some robots begin: an argument of a compiled sampler.

    Attributes:
      noise: normalised, of the model's steps and numbers; zeros where none is given.
      given: of which robots it is; the others' is drawn.
    """

    noise: Float[Array, 'b t d']
    given: Bool[Array, 'b']


def of_robots(
    noise: Sequence[Float[np.ndarray, 't d'] | None],
    seeds: Sequence[int | None],
    shape: tuple[int, int] | None,
) -> Draws | None:
    """Where the chunks of some robots begin.

    Args:
      noise: of each robot; None: none is given.
      seeds: of each robot, of which noise is drawn whatever its episode and frame; None: likewise.
      shape: (t, d), the model's; None: it does not act by flow.

    Returns:
      The argument of a sampler; None where nothing is given.

    Raises:
      UserError: both for one robot, noise of another shape or that is no numbers, no seed, or a
        model without a flow.
    """
    rows = list(zip(noise, seeds, strict=True))
    given = np.array([one is not None or seed is not None for one, seed in rows])
    if not given.any():
        return None
    if shape is None:
        raise UserError(
            'expected noise=None and seed=None of a policy that does not act by flow, got one; '
            'leave them out'
        )
    arrays: Any = np.stack([_begin(*row, shape) for row in rows]), given
    return Draws(*arrays)


def seeded(seed: int, shape: tuple[int, int]) -> Float[np.ndarray, 't d']:
    """The noise of a seed.

    Args:
      seed: from 0 to 2^32 - 1.
      shape: (t, d).

    Returns:
      Standard normal numbers.
    """
    return np.asarray(jax.random.normal(jax.random.key(seed), shape))


def check_seed(seed: int) -> None:
    """Whether a number is a seed.

    Args:
      seed: given.

    Raises:
      UserError: it is none from 0 to 2^32 - 1.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < SEEDS:
        raise UserError(f'expected seed from 0 to {SEEDS - 1}, got {seed!r}; choose one')


def _begin(noise, seed, shape):
    if noise is not None and seed is not None:
        raise UserError('expected noise or seed, got both; leave one out')
    if seed is not None:
        check_seed(seed)
        return seeded(int(seed), shape)
    if noise is None:
        return np.zeros(shape, np.float32)
    found = np.asarray(noise) if hasattr(noise, '__array__') else floats(noise)
    if found.shape != shape or found.dtype.kind != 'f':
        raise UserError(
            f'expected noise of floats {list(shape)}, got {found.dtype} {list(found.shape)}; draw '
            "it for the model's steps and numbers (`spec.noise_shape`)"
        )
    if not np.isfinite(found).all():
        raise UserError('expected finite noise, got NaN or infinity in it; draw it anew')
    return found.astype(np.float32)
