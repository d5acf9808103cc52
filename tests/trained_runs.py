"""Training folders as `train.py` leaves them, without a training."""

import json
import pathlib
import shutil

import jax
import numpy as np

from sigma_jax.backbones import pi05
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.nn import lora
from sigma_jax.objectives.sigma import init_sigma
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.training import loop
from sigma_jax.training.checkpoints import Checkpoints
from sigma_jax.training.config import RunConfig
from sigma_jax.training.devices import Devices
from sigma_jax.training.folder import RunFolder
from sigma_jax.training.run import Parts
from sigma_jax.training.step import TrainState
from tests.small_run import SmallRun, flow_config

COMPARED = ('actions', 'motor_commands', 'tau_l2', 'branches')


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


def alone(run: pathlib.Path, out: pathlib.Path, **changes: str) -> pathlib.Path:
    """A copy of a training with the record that its first step would have begun with, whose config
    names shards and tokenizer that are not there, and what else changes.
    """
    shutil.copytree(run, out)
    folder = RunFolder(out)
    if not (out / 'acting').is_dir():
        loop.keep_record(Parts(folder.config(), Devices(jax.local_devices()[:1])), folder)
    gone = {'shards': 'nowhere/shards', 'tokenizer': 'nowhere/tokenizer.json'}
    config = json.loads(folder.config_file.read_text()) | gone | changes
    folder.config_file.write_text(json.dumps(config))
    return out


def recorded(small_run, episode: int, split='train') -> list[dict]:
    """An episode's windows as a robot would have seen them."""
    records = open_shards(small_run.shards).split(split).records()
    meta, index, seen = records.meta, records.index, []
    for n in np.flatnonzero(np.asarray(index.episode) == episode).tolist():
        frames = zip(meta.camera_names, records[n].images, strict=True)
        seen.append(
            {IMAGES + name: frame for name, frame in frames}
            | {
                STATE: records[n].state,
                TASK: meta.tasks[index.text_id[n]],
                'episode': int(index.episode[n]),
                'frame': int(index.frame[n]),
            }
        )
    return seen


def first_episode(small_run) -> int:
    return int(open_shards(small_run.shards).split('train').records().index.episode[0])


def same(one, other, names=COMPARED) -> bool:
    parts = [{name: answer[name] for name in names} for answer in (one, other)]
    return jax.tree.all(jax.tree.map(np.array_equal, *parts))
