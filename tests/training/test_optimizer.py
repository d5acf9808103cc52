"""The optimiser against AdamW written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sigma_jax.training.optimizer import (
    OptimizerConfig,
    label_groups,
    make_optimizer,
    rate_schedule,
)

CONFIG = OptimizerConfig(
    sigma_rate=0.1,
    lora_rate=0.02,
    params_rate=0.05,
    warmup_steps=2,
    total_steps=6,
    weight_decay=0.3,
    clip_norm=1.0,
)
RATES = {'sigma': 0.1, 'lora': 0.02, 'params': 0.05}
DECAYING = {'sigma/w', 'lora/w', 'params/layers/w'}


def expected_rate(peak, step, c=CONFIG):
    """Linear from peak / 3 to peak over 2 steps, then half a cosine to a tenth at step 6."""
    if step < c.warmup_steps:
        first = peak / (c.warmup_steps + 1)
        return first + (peak - first) * step / c.warmup_steps
    done = min((step - c.warmup_steps) / (c.total_steps - c.warmup_steps), 1)
    return peak * (c.final_fraction + (1 - c.final_fraction) * 0.5 * (1 + np.cos(np.pi * done)))


@pytest.fixture
def params():
    """`layers` is scanned: its vectors have a leading layer axis."""
    rng = np.random.default_rng(0)
    return {
        'sigma': {'w': rng.normal(size=(2, 3)), 'b': rng.normal(size=3), 'gate': np.asarray(0.7)},
        'lora': {'w': rng.normal(size=(4, 2))},
        'params': {
            'layers': {
                'w': rng.normal(size=(2, 3, 3)),
                'bias': rng.normal(size=(2, 3)),
                'scale': np.ones((2, 3)),
            }
        },
    }


def flat(tree):
    return {
        f'{group}/{jax.tree_util.keystr(k, simple=True, separator="/")}': np.asarray(x, np.float64)
        for group, part in tree.items()
        for k, x in jax.tree_util.tree_leaves_with_path(part)
    }


def test_steps_equal_numpy_adamw(params):
    optimizer = make_optimizer(CONFIG)
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(tree)
    w = flat(params)
    m, v = {k: 0 * x for k, x in w.items()}, {k: 0 * x for k, x in w.items()}
    rng = np.random.default_rng(1)
    for step in range(8):
        scale = 10.0 if step % 2 else 0.01  # clipped, not clipped
        g = {k: scale * rng.normal(size=x.shape) for k, x in w.items()}
        grads = jax.tree.unflatten(
            jax.tree.structure(tree), [jnp.asarray(g[k], jnp.float32) for k in flat(tree)]
        )
        updates, state = optimizer.update(grads, state, tree)
        tree = optax.apply_updates(tree, updates)
        for name in RATES:
            keys = [k for k in w if k.startswith(name)]
            norm = np.sqrt(sum(np.sum(g[k] ** 2) for k in keys))
            for k in keys:
                clipped = g[k] / max(norm, 1.0)
                m[k] = CONFIG.b1 * m[k] + (1 - CONFIG.b1) * clipped
                v[k] = CONFIG.b2 * v[k] + (1 - CONFIG.b2) * clipped**2
                direction = (
                    m[k]
                    / (1 - CONFIG.b1 ** (step + 1))
                    / (np.sqrt(v[k] / (1 - CONFIG.b2 ** (step + 1))) + 1e-8)
                )
                decay = CONFIG.weight_decay * w[k] if k in DECAYING else 0.0
                w[k] = w[k] - expected_rate(RATES[name], step) * (direction + decay)
        for k, x in flat(tree).items():
            np.testing.assert_allclose(x, w[k], rtol=2e-5, atol=2e-6, err_msg=f'{k} at step {step}')


def test_schedule():
    schedule = rate_schedule(0.1, CONFIG)
    got = [float(schedule(step)) for step in range(9)]
    np.testing.assert_allclose(got, [expected_rate(0.1, step) for step in range(9)], rtol=1e-6)
    assert (
        got[0] > 0
        and max(got) == got[2] == pytest.approx(0.1)
        and got[6:] == [pytest.approx(0.01)] * 3
    )


@pytest.mark.parametrize('steps', [1, 2, 50])
def test_runs_shorter_than_the_warm_up_have_positive_rates(steps):
    schedule = rate_schedule(0.1, OptimizerConfig(warmup_steps=100, total_steps=steps))
    rates = [float(schedule(step)) for step in range(steps)]
    assert min(rates) > 0 and max(rates) == pytest.approx(0.1) and rates == sorted(rates)


def test_moments_exist_for_trainable_leaves_only(params):
    part = {'lora': params['lora']}
    state = make_optimizer(CONFIG).init(part)
    assert sorted(x.shape for x in jax.tree.leaves(state) if x.ndim) == [(8,), (8,)]
    assert label_groups(part) == {'lora': {'w': 'lora'}}
