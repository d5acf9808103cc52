"""`trainer.train` around one matrix: real loader positions, logs, checkpoints and signals, and
nothing to compile.
"""

import pathlib
from unittest import mock

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from sigma_jax.convert.load_base import Base
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Frozen

CONFIG = {
    'objective': 'flow_matching',
    'steps': 40,
    'batch_size': 2,
    'sequence_length': 1,
    'accumulate': 1,
    'log': {'every': 1, 'shares': 0},
    'checkpoint': {'every': 4, 'keep': 2},
}
ONE = np.ones((2, 1))
FIXED = dict.fromkeys(
    ('images', 'image_mask', 'prompt', 'prompt_mask', 'text', 'text_mask', 'state', 'reset'), ONE
)


def example(number: np.ndarray) -> dict[str, np.ndarray]:
    """A batch that only its number tells from others."""
    episode = np.asarray(number, int)[:, None]
    rest = {
        'mask': ONE,
        'text_id': ONE,
        'episode': episode,
        'frame': 16 * episode,
        'action_mask': ONE[..., None] > 0,
    }
    return FIXED | rest | {'actions': np.resize(np.float32(episode), (2, 1, 2, 3)) / 100}


def objective(trainable, frozen, batch, ablation, key, step):
    """Distance of a matrix to noise around the actions."""
    noise = jax.random.normal(key, (2, 3))
    loss = jnp.mean((trainable['sigma']['w'] - batch.actions - noise) ** 2)
    return loss, {'L_act': loss}


class ToyRun:
    """What `training` needs of a `Run`."""

    def __init__(self, config):
        self.config, self.devices, self.frozen, self.ablation = (
            config,
            Devices(jax.devices()[:1]),
            Frozen({}, None),
            None,
        )
        self.base = Base(None, None, '')
        numbers = (
            grain.MapDataset.source(list(range(200)))
            .shuffle(seed=0)
            .batch(2, drop_remainder=True)
            .map(example)
        )
        self.loader = iter(numbers.to_iter_dataset())
        optimizer = optax.adam(0.1)
        self.state = init_state(0, {'sigma': {'w': jnp.zeros((2, 3))}}, optimizer, ema=True)
        self.step = self.devices.jit(make_step(objective, optimizer, 0.5))


def work(config, workdir: pathlib.Path) -> None:
    """Trains; also in a process of its own."""
    logging.set_verbosity(logging.FATAL)
    with mock.patch.object(trainer, 'Run', ToyRun):
        trainer.train(RunConfig.from_dict(config), workdir)
