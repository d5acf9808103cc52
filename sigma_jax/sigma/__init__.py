"""Sigma, the paper as a folder: one file a workspace, one for each of its formulas.

vision, language, action      the three workspaces (3.1, 3.2, 3.3)
trajectory, layers            the DiT of the trajectory branch; what workspaces are built from
model, config                 the order of the two passes, the scan over windows; sizes and choices
losses, curriculum            TRAF and TSAC (4.2)
adapter                       how far to trust a residual, window by window (4.3)

Names are resolved when they are first used: `sj.sigma.Sigma`, `sj.sigma.adapter.fit`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma_jax.sigma import (
        action,
        adapter,
        config,
        curriculum,
        language,
        losses,
        model,
        trajectory,
        vision,
    )
    from sigma_jax.sigma.action import (
        ActionTrajectoryWorkspace,
        apply_residual,
        fuse_actions,
        low_level_controller,
    )
    from sigma_jax.sigma.adapter import AdapterConfig, AdapterState, adapt
    from sigma_jax.sigma.config import SigmaConfig
    from sigma_jax.sigma.curriculum import CurriculumConfig, make_schedules
    from sigma_jax.sigma.language import LanguageIntentWorkspace
    from sigma_jax.sigma.losses import LossConfig, combine, sigma_terms
    from sigma_jax.sigma.model import Sigma, embed_observation, initial_carry, window_keys
    from sigma_jax.sigma.trajectory import TrajectoryDiT
    from sigma_jax.sigma.vision import CognitiveVisionWorkspace

# where each public name is defined; the other public names are modules here
_HOMES = {
    'ActionTrajectoryWorkspace': 'action',
    'AdapterConfig': 'adapter',
    'AdapterState': 'adapter',
    'CognitiveVisionWorkspace': 'vision',
    'CurriculumConfig': 'curriculum',
    'LanguageIntentWorkspace': 'language',
    'LossConfig': 'losses',
    'Sigma': 'model',
    'SigmaConfig': 'config',
    'TrajectoryDiT': 'trajectory',
    'adapt': 'adapter',
    'apply_residual': 'action',
    'combine': 'losses',
    'embed_observation': 'model',
    'fuse_actions': 'action',
    'initial_carry': 'model',
    'low_level_controller': 'action',
    'make_schedules': 'curriculum',
    'sigma_terms': 'losses',
    'window_keys': 'model',
}

__all__ = [
    'ActionTrajectoryWorkspace',
    'AdapterConfig',
    'AdapterState',
    'CognitiveVisionWorkspace',
    'CurriculumConfig',
    'LanguageIntentWorkspace',
    'LossConfig',
    'Sigma',
    'SigmaConfig',
    'TrajectoryDiT',
    'action',
    'adapt',
    'adapter',
    'apply_residual',
    'combine',
    'config',
    'curriculum',
    'embed_observation',
    'fuse_actions',
    'initial_carry',
    'language',
    'losses',
    'low_level_controller',
    'make_schedules',
    'model',
    'sigma_terms',
    'trajectory',
    'vision',
    'window_keys',
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = import_module(f'{__name__}.{_HOMES.get(name, name)}')
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    """The public names."""
    return __all__
