"""Trains all rows of configs/ablations.py for 20 steps side by side and each alone, and prints how
far they are apart; run by tests/ablations/test_rows_alone.py, in float64 throughout (see
tests/two_devices.py).
"""

import json
import sys

import jax

from tests import two_devices as model  # first: it makes the model compute in float64
from tests.two_devices import OPTIMIZER, STEPS, apart, wide

# isort: split
from configs import ablations as config
from sigma_jax.ablations import stacked
from sigma_jax.backbones import pi05
from sigma_jax.nn import lora
from sigma_jax.objectives.sigma import init_sigma
from sigma_jax.training.devices import Devices
from sigma_jax.training.grid import Grid
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import Frozen
from tests import small_sigma as small

SEEDS = (0, 1)


def setting():
    """(objective, frozen, batch, {seed: its start})."""
    sizes = model.sizes(0.1)
    batch = model.small_batch(sizes.vision.image_size)
    params = model.noisy(jax.jit(lambda key: pi05.init_params(key, sizes))(jax.random.key(0)))
    frozen, objective = (
        Frozen(wide(params), wide(small.frozen().scaling)),
        model.sigma_objective(sizes),
    )
    init = jax.jit(lambda key: init_sigma(key, objective, frozen, batch))

    def start(seed):
        factors = lora.init_factors(jax.random.key(seed), params, pi05.LAYOUTS, sizes.lora)
        trainable = {
            'sigma': init(jax.random.key(seed)),
            'lora': {'PaliGemma': factors['PaliGemma']},
        }
        return init_state(seed, wide(model.noisy(trainable)), OPTIMIZER)

    return objective, frozen, wide(batch), {seed: start(seed) for seed in SEEDS}


def main(count):
    """Side by side on all devices, `count` members at a time, against the plain step."""
    objective, frozen, batch, starts = setting()
    members = stacked.cross(Grid.from_dict(config.get_config()).rows, SEEDS)
    one = make_step(objective, OPTIMIZER)
    devices = Devices(jax.devices())
    rows = devices.shard_batch(stacked.start([starts[m.seed] for m in members]))
    gates = devices.shard_batch(
        jax.tree.map(lambda x: x.astype(float), stacked.stack_gates(members))
    )

    def share(frozen, batch):
        return batch.replace(observation=objective.encode_frozen(frozen, batch.observation))

    program, alone = devices.jit_members(stacked.vmapped_step(one, count, share)), jax.jit(one)
    placed = devices.replicate((frozen, batch))
    for _ in range(STEPS):
        rows, metrics = program(rows, *placed, gates)
    rows, metrics, gates = jax.device_get((rows, metrics, gates))
    differences, moved = [], []
    for n, member in enumerate(members):
        state = starts[member.seed]
        for _ in range(STEPS):
            state, expected = alone(state, frozen, batch, jax.tree.map(lambda x, n=n: x[n], gates))
        got = stacked.member_state(rows, n)
        results = (got.trainable, got.opt_state, {k: v[n] for k, v in metrics.items()})
        differences.append(
            apart(*map(jax.device_get, ((state.trainable, state.opt_state, expected), results)))
        )
        moved.append(apart(*map(jax.device_get, (starts[member.seed].trainable, state.trainable))))
    found = {'devices': devices.count, 'difference': max(differences), 'moved': min(moved)}
    return found | {'different': len(set(metrics['loss'].tolist())), 'members': len(members)}


if __name__ == '__main__':
    print(json.dumps(main(int(sys.argv[1]))))
