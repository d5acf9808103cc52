"""The one place that imports MuJoCo: picks an off-screen backend and explains a missing installation."""

import os
import sys

from sigma_jax.errors import UserError

if sys.platform.startswith('linux') and not os.environ.get('DISPLAY'):
    os.environ.setdefault(
        'MUJOCO_GL', 'egl'
    )  # MuJoCo reads this at import; without it a headless machine gets no context

try:
    import mujoco
except ImportError as error:
    raise UserError(
        f'sigma_jax.sim needs MuJoCo, which could not be imported ({error}); run `pip install sigma_jax[sim]`.'
    ) from error

__all__ = ['mujoco']
