"""SO-101 in MuJoCo: scripted demonstrations and closed-loop evaluation (optional extra `sim`).

Names are resolved lazily, so that `sigma_jax.sim` costs nothing until one of them is used; without
MuJoCo the first use raises a UserError that says what to install.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    'PickPlaceEnv': 'sigma_jax.sim.env',
    'TASKS': 'sigma_jax.sim.tasks',
    'TARGET_TASK': 'sigma_jax.sim.tasks',
    'MIXES': 'sigma_jax.sim.tasks',
    'record': 'sigma_jax.sim.record',
}
__all__ = ['MIXES', 'TARGET_TASK', 'TASKS', 'PickPlaceEnv', 'record']


def __getattr__(name: str) -> Any:
    """Returns a public name of this package; raises UserError where MuJoCo or the robot's assets
    are not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f'sigma_jax.sim offers {", ".join(sorted(_HOMES))}, got {name!r}')
    return getattr(import_module(_HOMES[name]), name)
