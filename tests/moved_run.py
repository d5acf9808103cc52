"""A training that stops upon some devices and goes on upon others; run by
tests/training/test_devices.py.

As a script: `python -m tests.moved_run FOLDER write|go_on`, in a process with as many devices as it
is to see.
"""

import functools
import json
import pathlib
import shutil
import sys
from unittest import mock

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.step import init_state, make_step
from tests import toy_run

COUNTS = (1, 2, 4)
HALF, WHOLE = 3, 6


def example(number):
    """A batch of four rows, which one, two and four devices can divide."""
    return {k: np.concatenate([v, v]) for k, v in toy_run.example(number).items()}


class MovedRun(toy_run.ToyRun):
    """The toy on `count` of the devices."""

    def __init__(self, config, count):
        super().__init__(config)
        self.devices = Devices(jax.devices()[:count])
        numbers = (
            grain.MapDataset.source(list(range(200)))
            .shuffle(seed=0)
            .batch(2, drop_remainder=True)
            .map(example)
        )
        self.loader, optimizer = iter(numbers.to_iter_dataset()), optax.adam(0.1)
        start = init_state(0, {'sigma': {'w': jnp.arange(6.0).reshape(2, 3)}}, optimizer, ema=True)
        self.state, self.frozen = (
            self.devices.replicate(start),
            self.devices.replicate(self.frozen),
        )
        self.step = self.devices.jit(make_step(toy_run.objective, optimizer, 0.5))


def train(folder: pathlib.Path, count: int, steps: int) -> None:
    with mock.patch.object(trainer, 'Run', functools.partial(MovedRun, count=count)):
        trainer.train(RunConfig.from_dict(toy_run.CONFIG | {'steps': steps}), folder)


def write(folder: pathlib.Path) -> None:
    """Half a training upon each count of devices."""
    for count in COUNTS:
        train(folder / f'from{count}', count, HALF)


def go_on(folder: pathlib.Path) -> dict[str, dict[str, list]]:
    """What is read of each half by a process with these devices, and the end when all of these go
    on from it.
    """
    count, found = jax.device_count(), {}
    for before in COUNTS:
        here = folder / f'from{before}to{count}'
        shutil.copytree(folder / f'from{before}', here)
        read = RunFolder(here).trainable()
        train(here, count, WHOLE)
        found[str(before)] = {'read': numbers(*read), 'end': numbers(*RunFolder(here).trainable())}
    return found


def numbers(step, trainable) -> list:
    """Step and leaves, JSON-ready."""
    return [step, np.asarray(trainable['sigma']['w']).tolist()]


if __name__ == '__main__':
    for what in sys.argv[2:]:
        print(json.dumps({'write': write, 'go_on': go_on}[what](pathlib.Path(sys.argv[1]))))
