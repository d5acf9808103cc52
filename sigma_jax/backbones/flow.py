"""How a chunk is sampled from a field of velocities, freely or bound to the chunk before it
(docs/design.md, "Chunks without a seam").

Time t runs from 1 (noise) to 0 (actions), and a step takes x to x - v / steps. What the velocity at
time t holds the actions for is x - t v; the papers' time is 1 - t, and their velocity -v.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sigma_jax.types import Continuation

# (x [b t a], time [b] or, one a step of the chunk, [b t]) -> velocity [b t a]
Velocity = Callable[[Array, Array], Array]
# (x, time, a scalar) -> x one Euler step on
Step = Callable[[Array, Array], Array]
CLEAN = 0.0  # the time of an action without noise


def integrate(
    velocity: Velocity, noise: Float[Array, 'b t a'], steps: int, bound: Continuation
) -> Float[Array, 'b t a']:
    """Euler steps from noise at time 1 to actions at time 0, bound to a chunk before.

    Args:
      velocity: of the flow.
      noise: standard normal.
      steps: how many.
      bound: to what. One program serves any numbers in it.

    Returns:
      Normalised actions.
    """
    bound, x = _fitted(bound, noise.shape), noise.astype(jnp.float32)
    times = 1.0 - jnp.arange(steps, dtype=jnp.float32) / steps
    make = {'guided': _guided, 'lerobot': _guided, 'trained': _inpainted}[bound.mode]
    step = make(velocity, steps, bound)
    return jax.lax.scan(lambda x, time: (step(x, time), None), x, times)[0]


def guidance_weight(time: Float[Array, ''], max_guidance: Float[Array, 'b']) -> Float[Array, 'b']:
    """min(beta, (1 - tau) / tau * (tau^2 + (1 - tau)^2) / (1 - tau)^2) with tau = 1 - time, beta at
    tau = 0 (arXiv 2506.07339).

    Args:
      time: 1 (noise) to above 0.
      max_guidance: beta.

    Returns:
      The weight of the guidance at this time.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.backbones.flow import guidance_weight
      >>> [guidance_weight(jnp.float32(t), jnp.float32(5)).item() for t in (1, 0.5)]
      [5.0, 2.0]
    """
    return jnp.minimum(max_guidance, ((1 - time) ** 2 + time**2) / (time * (1 - time)))


def _guided(velocity: Velocity, steps: int, bound: Continuation) -> Step:
    """A step of guided inpainting: v - w J^T W (y - x_0), where x_0 = x - t v is what x would come
    to, and J its Jacobian by x (arXiv 2506.07339); the identity where the mode is 'lerobot'.
    """

    def step(x: Array, time: Array) -> Array:
        def denoised(x: Array) -> tuple[Array, Array]:
            v = velocity(x, _of_each(time, x))
            return x - time * v, v

        if bound.mode == 'guided':
            x_0, transposed, v = jax.vjp(denoised, x, has_aux=True)
        else:
            (x_0, v), transposed = denoised(x), lambda error: (error,)
        (pull,) = transposed(bound.weights[..., None] * (bound.actions - x_0))
        weight = guidance_weight(time, bound.max_guidance)[:, None, None]
        return x - (v - weight * pull) / steps

    return step


def _inpainted(velocity: Velocity, steps: int, bound: Continuation) -> Step:
    """A step of a policy that has learned to go on from clean actions (arXiv 2512.05964): they
    stay, and their time is that of an action without noise.
    """

    def step(x: Array, time: Array) -> Array:
        each = jnp.where(bound.weights > 0, CLEAN, _of_each(time, x)[:, None])
        x = _committed(x, bound)
        return _committed(x - velocity(x, each) / steps, bound)

    return step


def _committed(x: Array, bound: Continuation) -> Array:
    return jnp.where(bound.weights[..., None] > 0, bound.actions, x)


def _of_each(time: Array, x: Array) -> Float[Array, 'b']:
    return jnp.full(x.shape[:1], time)


def _fitted(bound: Continuation, shape: tuple[int, ...]) -> Continuation:
    """With as many steps and numbers as the policy's chunk, zeros where there were none."""
    _, steps, width = shape
    more = steps - bound.actions.shape[1]
    actions = jnp.pad(bound.actions, ((0, 0), (0, more), (0, width - bound.actions.shape[2])))
    weights = jnp.pad(bound.weights, ((0, 0), (0, more)))
    return dataclasses.replace(bound, actions=actions, weights=weights)
