"""A run from end to end on the golden recording: shards, a tiny base trained in two steps, its
baselines, configs.
"""

import dataclasses
import pathlib

from configs import data_so101, defaults
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.policies import base_actions
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from tests import golden

EXPERT = {'width': 16, 'depth': 1, 'mlp_dim': 16, 'heads': 2, 'kv_heads': 1, 'head_dim': 8}
MODEL = {
    'vision': {'width': 16, 'depth': 1, 'mlp_dim': 16, 'heads': 2, 'patch': 14, 'image_size': 28},
    'language': EXPERT | {'width': 32},
    'expert': EXPERT | {'adaptive': True},
    'vocab_size': 640,
    'action_dim': 8,
    'action_horizon': 16,
    'sample_steps': 2,
}
SIGMA = {
    'd_tau': 4,
    'num_factors': 2,
    'num_visual': 3,
    'num_state': 2,
    'heads': 4,
    'vision_blocks': 0,
    'state_hidden': 8,
    'action_width': 8,
    'action_heads': 2,
    'num_queries': 2,
    'query_blocks': 0,
    'token_dim': 4,
    'trajectory_blocks': 0,
    'refinement_steps': 1,
}


@dataclasses.dataclass(frozen=True)
class SmallRun:
    """Folders of a finished preparation; `flow` is the work folder of the base's own training."""

    shards: pathlib.Path
    flow: pathlib.Path

    @property
    def base(self) -> pathlib.Path:
        return self.flow / 'policy'

    def config(self, **changes) -> dict:
        """A run of Sigma: 5 steps, a row each step, a checkpoint every 2."""
        config = defaults.get_config().to_dict()
        config['sigma'] |= SIGMA
        config['log']['every'], config['checkpoint'] = 1, {'every': 2, 'keep': 5}
        paths = {'base': str(self.base), 'shards': str(self.shards)}
        return (
            config
            | paths
            | {'steps': 5, 'batch_size': 2, 'sequence_length': 2, 'ema': 0.5}
            | changes
        )

    def baseline_config(self, **changes) -> base_actions.BaselineConfig:
        """Two draws a window, four windows a batch."""
        return base_actions.BaselineConfig(
            **{'base': str(self.base), 'samples': 2, 'batch_size': 4} | changes
        )


def flow_config(shards: pathlib.Path) -> dict:
    """Two steps of flow matching on all weights."""
    config = defaults.get_config().to_dict()
    config['model'] |= MODEL
    kind = {
        'objective': 'flow_matching',
        'trainable': ('params',),
        'stats_from': 'shards',
        'shards': str(shards),
    }
    return config | kind | {'steps': 2, 'batch_size': 2, 'sequence_length': 1}


def make(root: pathlib.Path) -> SmallRun:
    """Everything that training Sigma needs, in seconds."""
    run = SmallRun(root / 'shards', root / 'flow')
    settings = data_so101.get_config().data.to_dict() | {
        'source': str(golden.DATA / 'lerobot' / 'v3.0'),
        'image_size': 28,
        'stride': 2,
        'min_motion': 0.0,
        'train_episodes': (1, 2),
        'calibration_episodes': (0,),
    }
    prepare(DataConfig.from_settings(settings), run.shards)
    trainer.train(RunConfig.from_dict(flow_config(run.shards)), run.flow)
    base_actions.write_baselines(open_shards(run.shards), run.baseline_config())
    return run
