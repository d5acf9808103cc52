"""sigma_jax: fine-tuning pi0.5 with the three workspaces of the Sigma paper, in JAX and Flax.

    import sigma_jax as sj

    sj.convert_weights('lerobot/pi05_base', 'runs/base')
    sj.prepare_data(sj.DataConfig.from_settings(settings), 'runs/shards', base='runs/base')
    sj.train(sj.RunConfig.from_dict(config), 'runs/sigma')
    sj.evaluate('runs/sigma').report

Names are resolved when they are first used: `import sigma_jax` alone loads neither JAX nor any
module of the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma_jax import backbones, sigma, types
    from sigma_jax.ablations.stacked_trainer import AblationResult
    from sigma_jax.api.conversion import Conversion, Proof, convert_weights, verify
    from sigma_jax.api.evaluation import Evaluation, evaluate
    from sigma_jax.api.policies import load_policy
    from sigma_jax.api.preparation import (
        Inspection,
        Preparation,
        export_pt,
        inspect_shards,
        open_dataset,
        prepare_data,
    )
    from sigma_jax.api.serving import ServingConfig, serve
    from sigma_jax.api.serving_forecast import ServingForecast, forecast_serving
    from sigma_jax.api.training import export, forecast, train, train_ablations
    from sigma_jax.cli.reporter import ConsoleReporter
    from sigma_jax.data.shards.directory import Shards, open_shards
    from sigma_jax.data.shards.plan import DataConfig
    from sigma_jax.errors import UserError
    from sigma_jax.nn.quant import QuantConfig
    from sigma_jax.policies.base_actions import BaselineConfig
    from sigma_jax.policies.chunking import ChunkingConfig
    from sigma_jax.policies.load import Joints
    from sigma_jax.policies.protocol import Policy
    from sigma_jax.sigma import losses
    from sigma_jax.training.config import RunConfig
    from sigma_jax.training.folder import RunFolder
    from sigma_jax.training.grid import Grid
    from sigma_jax.training.memory_check import Forecast
    from sigma_jax.training.progress import Reporter
    from sigma_jax.training.signals import Stopped
    from sigma_jax.training.trainer import TrainingResult

__version__ = '0.1.0'

# where each public name is defined; a namespace is a module of the same name
_HOMES = {
    'AblationResult': 'ablations.stacked_trainer',
    'BaselineConfig': 'policies.base_actions',
    'ChunkingConfig': 'policies.chunking',
    'ConsoleReporter': 'cli.reporter',
    'Conversion': 'api.conversion',
    'DataConfig': 'data.shards.plan',
    'Evaluation': 'api.evaluation',
    'Forecast': 'training.memory_check',
    'Grid': 'training.grid',
    'Inspection': 'api.preparation',
    'Joints': 'policies.load',
    'Policy': 'policies.protocol',
    'Preparation': 'api.preparation',
    'Proof': 'api.conversion',
    'QuantConfig': 'nn.quant',
    'Reporter': 'training.progress',
    'RunConfig': 'training.config',
    'RunFolder': 'training.folder',
    'ServingConfig': 'api.serving',
    'ServingForecast': 'api.serving_forecast',
    'Shards': 'data.shards.directory',
    'Stopped': 'training.signals',
    'TrainingResult': 'training.trainer',
    'UserError': 'errors',
    'convert_weights': 'api.conversion',
    'evaluate': 'api.evaluation',
    'export': 'api.training',
    'export_pt': 'api.preparation',
    'forecast': 'api.training',
    'forecast_serving': 'api.serving_forecast',
    'inspect_shards': 'api.preparation',
    'load_policy': 'api.policies',
    'open_dataset': 'api.preparation',
    'open_shards': 'data.shards.directory',
    'prepare_data': 'api.preparation',
    'serve': 'api.serving',
    'train': 'api.training',
    'train_ablations': 'api.training',
    'verify': 'api.conversion',
}
_NAMESPACES = {
    'backbones': 'backbones',
    'losses': 'sigma.losses',
    'sigma': 'sigma',
    'types': 'types',
}

__all__ = [
    'AblationResult',
    'BaselineConfig',
    'ChunkingConfig',
    'ConsoleReporter',
    'Conversion',
    'DataConfig',
    'Evaluation',
    'Forecast',
    'Grid',
    'Inspection',
    'Joints',
    'Policy',
    'Preparation',
    'Proof',
    'QuantConfig',
    'Reporter',
    'RunConfig',
    'RunFolder',
    'ServingConfig',
    'ServingForecast',
    'Shards',
    'Stopped',
    'TrainingResult',
    'UserError',
    'backbones',
    'convert_weights',
    'evaluate',
    'export',
    'export_pt',
    'forecast',
    'forecast_serving',
    'inspect_shards',
    'load_policy',
    'losses',
    'open_dataset',
    'open_shards',
    'prepare_data',
    'serve',
    'sigma',
    'train',
    'train_ablations',
    'types',
    'verify',
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name in _NAMESPACES:
        return import_module(f'sigma_jax.{_NAMESPACES[name]}')
    if name in _HOMES:
        return getattr(import_module(f'sigma_jax.{_HOMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    """The public names, and the version."""
    return [*__all__, '__version__']
