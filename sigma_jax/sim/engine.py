"""The one place that imports MuJoCo: picks an off-screen backend and explains a missing
installation.
"""

import ctypes.util
import os
import sys

from sigma_jax.errors import UserError


def backend() -> str:
    """What draws without a display: 'egl', 'osmesa', or 'disable' where neither library is there
    (physics only).
    """
    for name, library in (('egl', 'EGL'), ('osmesa', 'OSMesa')):
        if ctypes.util.find_library(library):
            return name
    return 'disable'


if sys.platform.startswith('linux') and not os.environ.get('DISPLAY'):
    os.environ.setdefault('MUJOCO_GL', backend())  # MuJoCo reads this at import

try:
    import mujoco
except ImportError as error:
    raise UserError(
        f'expected MuJoCo for sigma_jax.sim, got: {error}; run `pip install sigma_jax[sim]`'
    ) from error

__all__ = ['mujoco']
