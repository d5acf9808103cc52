"""Training folders as `train.py` leaves them, without a training."""

import json
import pathlib

import jax
import numpy as np

from sigma_jax.backbones import pi05
from sigma_jax.nn import lora
from sigma_jax.objectives.sigma import init_sigma
from sigma_jax.training.checkpoints import Checkpoints
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.run import Parts
from sigma_jax.training.step import TrainState
from tests.small_run import SmallRun, flow_config


def save(folder, config, trainable):
    """A training folder as `train.py` leaves it, without the training."""
    state = TrainState(np.int32(1), np.zeros(2, np.uint32), trainable, {'none': np.zeros(1)})
    with Checkpoints(folder / 'checkpoints', keep=1) as checkpoints:
        checkpoints.save(state, {}, RunConfig.from_dict(config))
    (folder / 'config.json').write_text(json.dumps(config))


def of_another_robot(base: pathlib.Path) -> None:
    """Makes a base one whose training saw another robot: it has statistics of its own, and joints
    that count from the state, so that no units but the right ones give its actions.
    """
    file = base / 'norm_stats.json'
    told = json.loads(file.read_text())
    for one, widen in zip(told['norm_stats'].values(), (1.5, 0.6), strict=True):
        for name, row in one.items():
            move = 0.0 if name == 'std' else 0.2
            one[name] = [widen * x + move * (n + 1) for n, x in enumerate(row)]
    file.write_text(json.dumps(told))
    settings = json.loads((base / 'policy.json').read_text())
    settings['relative_joints'] = [True, False, False, True, False, True]
    (base / 'policy.json').write_text(json.dumps(settings))


def shaken(trainable, seed):
    """No zero hides a path."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.float32(x + 0.2 * rng.standard_normal(x.shape)), jax.device_get(trainable)
    )


def make_rows(small_run: SmallRun, rows: pathlib.Path) -> None:
    """Rows sigma (two seeds), no_tau (the weights of sigma's first) and pi05_lora (untouched: B is
    zero), as if it had been given up to three actions.
    """
    config = json.loads(json.dumps(small_run.config(steps=1)))
    parts = Parts(RunConfig.from_dict(config), Devices(jax.local_devices()[:1]))
    heads = jax.eval_shape(
        lambda: init_sigma(jax.random.key(0), parts.objective, parts.frozen, parts.example)
    )
    factors = lora.init_factors(
        jax.random.key(0), parts.base.params, pi05.LAYOUTS, parts.base.config.lora
    )
    fresh = {'sigma': jax.tree.map(lambda x: np.zeros(x.shape), heads), 'lora': factors}
    for seed in (0, 1):
        save(rows / 'sigma' / f'seed{seed}', config | {'seed': seed}, shaken(fresh, seed))
    save(
        rows / 'no_tau' / 'seed0',
        config | {'ablation': config['ablation'] | {'tau': 0.0}},
        shaken(fresh, 0),
    )
    flow = flow_config(small_run.shards) | {
        'base': str(small_run.base),
        'trainable': ('lora',),
        'steps': 1,
    }
    save(
        rows / 'pi05_lora' / 'seed0',
        json.loads(json.dumps(flow | {'stats_from': 'base', 'rtc': {'max_delay': 3}})),
        {'lora': fresh['lora']},
    )
